//! The monotonic clock and deadlines that are cheap to move.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

pub use tokio::time::Instant;
use tokio::time::{Sleep, sleep_until};

/// A moment that can be waited for, moved or cleared.
///
/// Moving it to later is a plain write: the timer below fires at the earlier moment, sees that it
/// is not yet time, and goes on sleeping. So a connection keeps one for its life instead of making
/// a timer for each request.
#[derive(Default)]
pub struct Deadline {
    when: Option<Instant>,
    /// The timer and the moment for which it is set; None when it has fired.
    timer: Option<Pin<Box<Sleep>>>,
    timer_at: Option<Instant>,
}

impl Deadline {
    /// Wait until `when`; replaces what was set before.
    pub fn set(&mut self, when: Instant) {
        self.when = Some(when);
    }

    /// Wait for nothing.
    pub fn clear(&mut self) {
        self.when = None;
    }

    /// Ready once, when the moment has come.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(when) = self.when else {
            return Poll::Pending;
        };
        loop {
            let timer = self.timer_for(when);
            ready!(timer.as_mut().poll(context));
            self.timer_at = None;
            if Instant::now() >= when {
                self.when = None;
                return Poll::Ready(());
            }
        }
    }

    /// The timer, set so that it fires at `when` or before.
    fn timer_for(&mut self, when: Instant) -> &mut Pin<Box<Sleep>> {
        let timer = self.timer.get_or_insert_with(|| {
            self.timer_at = Some(when);
            Box::pin(sleep_until(when))
        });
        if self.timer_at.is_none_or(|at| at > when) {
            timer.as_mut().reset(when);
            self.timer_at = Some(when);
        }
        timer
    }
}

/// A time of the configuration, which is in seconds.
pub fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn wait(deadline: &mut Deadline) {
        poll_fn(|context| deadline.poll(context)).await;
    }

    fn after(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_comes_at_its_moment() {
        let started = Instant::now();
        let mut deadline = Deadline::default();
        deadline.set(after(300));
        wait(&mut deadline).await;
        assert_eq!(started.elapsed().as_millis() / 2 * 2, 300);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_moved_to_later_comes_later() {
        let started = Instant::now();
        let mut deadline = Deadline::default();
        deadline.set(after(100));
        let early = tokio::time::timeout(Duration::from_millis(50), wait(&mut deadline)).await;
        assert!(early.is_err());
        deadline.set(started + Duration::from_millis(400));
        wait(&mut deadline).await;
        assert!(started.elapsed() >= Duration::from_millis(400));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_moved_to_earlier_comes_earlier() {
        let started = Instant::now();
        let mut deadline = Deadline::default();
        deadline.set(after(10_000));
        let early = tokio::time::timeout(Duration::from_millis(10), wait(&mut deadline)).await;
        assert!(early.is_err());
        deadline.set(after(100));
        wait(&mut deadline).await;
        assert!(started.elapsed() < Duration::from_millis(200));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_cleared_or_has_come_does_not_come_again() {
        let mut deadline = Deadline::default();
        deadline.set(after(10));
        wait(&mut deadline).await;
        let again = tokio::time::timeout(Duration::from_secs(9), wait(&mut deadline)).await;
        assert!(again.is_err());
        deadline.set(after(10));
        deadline.clear();
        let cleared = tokio::time::timeout(Duration::from_secs(9), wait(&mut deadline)).await;
        assert!(cleared.is_err());
    }
}
