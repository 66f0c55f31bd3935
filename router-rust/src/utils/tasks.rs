//! A changing set of background tasks with one owner.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::hash::Hash;

use tokio::task::JoinHandle;

/// One running task for each key that is wanted; dropping it ends them all.
#[derive(Debug)]
pub struct TaskSet<K> {
    tasks: HashMap<K, JoinHandle<()>>,
}

impl<K> Default for TaskSet<K> {
    fn default() -> Self {
        Self {
            tasks: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> TaskSet<K> {
    /// Start what is new (or has died) and end what is not wanted any more.
    pub fn keep<T, F>(&mut self, wanted: Vec<(K, T)>, start: impl Fn(T) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let keys: HashSet<&K> = wanted.iter().map(|(key, _)| key).collect();
        self.tasks.retain(|key, task| {
            let stays = keys.contains(key);
            if !stays {
                task.abort();
            }
            stays
        });
        for (key, job) in wanted {
            if self.tasks.get(&key).is_none_or(JoinHandle::is_finished) {
                self.tasks.insert(key, tokio::spawn(start(job)));
            }
        }
    }
}

impl<K> Drop for TaskSet<K> {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts itself while it runs.
    struct Running(Arc<AtomicUsize>);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn forever(count: &Arc<AtomicUsize>) -> impl Future<Output = ()> + Send + use<> {
        count.fetch_add(1, Ordering::Relaxed);
        let running = Running(Arc::clone(count));
        async move {
            let _guard = &running;
            std::future::pending::<()>().await;
        }
    }

    async fn settle() {
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_wanted_runs_once_and_what_is_not_wanted_ends() {
        let count = Arc::new(AtomicUsize::new(0));
        let mut tasks = TaskSet::default();
        let start = |count: Arc<AtomicUsize>| forever(&count);
        let two = || vec![("a", Arc::clone(&count)), ("b", Arc::clone(&count))];
        tasks.keep(two(), start);
        tasks.keep(two(), start);
        settle().await;
        assert_eq!(count.load(Ordering::Relaxed), 2);
        tasks.keep(vec![("b", Arc::clone(&count))], start);
        settle().await;
        assert_eq!(count.load(Ordering::Relaxed), 1);
        drop(tasks);
        settle().await;
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_task_that_ended_is_started_again() {
        let starts = Arc::new(AtomicUsize::new(0));
        let mut tasks = TaskSet::default();
        for _ in 0..3 {
            tasks.keep(vec![("a", Arc::clone(&starts))], |starts| async move {
                starts.fetch_add(1, Ordering::Relaxed);
            });
            settle().await;
        }
        assert_eq!(starts.load(Ordering::Relaxed), 3);
    }
}
