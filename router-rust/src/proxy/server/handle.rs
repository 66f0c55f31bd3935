//! A connection as the rest of its thread sees it.

use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};

use crate::utils::errors::RouterError;

/// How far a connection is with a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Idle,
    Head,
    Body,
    Answer,
    /// Nothing is read any more; what is left is sent.
    Closing,
    /// All is sent; the client is given time to take it.
    Lingering,
}

/// A connection as the rest of the thread sees it.
#[derive(Default)]
pub struct ClientHandle {
    pub state: Cell<State>,
    pub closes_if_idle: Cell<bool>,
    pub aborted: RefCell<Option<RouterError>>,
    waker: RefCell<Option<Waker>>,
}

impl ClientHandle {
    /// Whether a request or an answer is on its way.
    pub fn is_busy(&self) -> bool {
        !matches!(self.state.get(), State::Idle | State::Lingering)
    }

    /// For drain: close when no request is under way.
    pub fn close_if_idle(&self) {
        self.closes_if_idle.set(true);
        self.wake();
    }

    /// End the request at an engine with this error.
    pub fn abort(&self, error: RouterError) {
        *self.aborted.borrow_mut() = Some(error);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Be woken for orders. A task's waker stays the same, so this is a comparison.
    pub fn listen(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|known| known.will_wake(context.waker()))
        {
            *waker = Some(context.waker().clone());
        }
    }
}
