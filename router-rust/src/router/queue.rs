//! Where requests wait while every engine that could serve them has as many as it may have.
//!
//! First come, first served for each model. The place that a request leaves at an engine is handed
//! to the one that has waited longest among those whose model the engine serves, in the same step
//! in which it becomes free: nobody overtakes, and the engine's limit is never passed.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::router::engine::Outcome;
use crate::router::load::{Book, InFlight, LoadBook};
use crate::router::pace::Pace;
use crate::router::selection::{Choice, Nobody, Request, Rules, choose};
use crate::router::table::TableStore;
use crate::utils::errors::{Code, RouterError};
use crate::utils::json;

/// What changes with time alone (an ejection ends) is seen by then.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Seconds.
const MAX_RETRY_AFTER: f64 = 60.0;

/// A request's place at an engine, counted in already.
pub struct Place {
    pub choice: Choice,
    pub in_flight: InFlight,
}

/// What a request is told that asked for a place.
pub enum Answer {
    Place(Place),
    Refused(RouterError),
    /// No engine is left that was not tried.
    Tried,
}

/// What comes of asking for a place: an answer, or a place in a queue.
pub enum Asked {
    Now(Answer),
    Later(Ticket),
}

/// Requests that may wait for a model, the time for which they may, bytes of all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoomLimits {
    pub size: usize,
    /// Seconds.
    pub timeout: f64,
    pub bytes: u64,
}

impl Default for RoomLimits {
    fn default() -> Self {
        Self {
            size: 128,
            timeout: 30.0,
            bytes: 256 * 1024 * 1024,
        }
    }
}

/// Requests for the same model that tried the same engines can be served by the same ones.
type Key = (Option<String>, Vec<String>);

/// A waiting request, seen from the room: what it asks for, its bytes, and how to tell it.
struct Waiting {
    request: Arc<Request>,
    size: u64,
    tell: oneshot::Sender<Answer>,
}

/// A waiting request's place in its queue; who drops it waits no longer.
pub struct Ticket {
    room: Arc<WaitingRoom>,
    key: Key,
    number: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Ticket {
    /// Ready when the wait is over.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let told = ready!(Pin::new(&mut self.answer).poll(context));
        Poll::Ready(told.unwrap_or_else(|_| nothing_told()))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // A place that was handed over meanwhile is given back by its own guard, after this.
        self.room.book.lock().queues.remove(&self.key, self.number);
    }
}

fn nothing_told() -> Answer {
    Answer::Refused(RouterError::new(Code::Internal, "internal error"))
}

/// The queues of all models; the lock of the `LoadBook` guards them.
#[derive(Default)]
pub(crate) struct Queues {
    pub(crate) waiting: usize,
    rules: Rules,
    limits: RoomLimits,
    by_key: HashMap<Key, BTreeMap<u64, Waiting>>,
    next_number: u64,
    bytes: u64,
    paces: HashMap<Option<String>, Pace>,
}

impl Queues {
    fn length(&self, model: Option<&str>) -> usize {
        let queues = self.by_key.iter();
        queues
            .filter(|((name, _), _)| name.as_deref() == model)
            .map(|(_, queue)| queue.len())
            .sum()
    }

    fn is_queue(&self, model: Option<&str>) -> bool {
        let key = (model.map(str::to_owned), Vec::new());
        self.waiting > 0 && self.by_key.contains_key(&key)
    }

    fn has_room(&self, model: Option<&str>, size: u64) -> bool {
        self.length(model) < self.limits.size && self.bytes + size <= self.limits.bytes
    }

    fn push(&mut self, key: &Key, waiting: Waiting, now: Instant) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.waiting += 1;
        self.bytes += waiting.size;
        let pace = self.paces.entry(key.0.clone());
        pace.or_insert_with(|| Pace::new(now));
        self.by_key
            .entry(key.clone())
            .or_default()
            .insert(number, waiting);
        number
    }

    fn remove(&mut self, key: &Key, number: u64) -> Option<Waiting> {
        let queue = self.by_key.get_mut(key)?;
        let waiting = queue.remove(&number)?;
        if queue.is_empty() {
            self.by_key.remove(key);
            if self.length(key.0.as_deref()) == 0 {
                self.paces.remove(&key.0);
            }
        }
        self.bytes -= waiting.size;
        self.waiting -= 1;
        Some(waiting)
    }

    /// The longest waiting of each queue, in the order in which they came.
    fn heads(&self) -> Vec<(u64, Key)> {
        let head = |(key, queue): (&Key, &BTreeMap<u64, Waiting>)| {
            let (number, _) = queue.first_key_value()?;
            Some((*number, key.clone()))
        };
        let mut heads: Vec<_> = self.by_key.iter().filter_map(head).collect();
        heads.sort_unstable_by_key(|(number, _)| *number);
        heads
    }

    fn request(&self, key: &Key, number: u64) -> Option<Arc<Request>> {
        let waiting = self.by_key.get(key)?.get(&number)?;
        Some(Arc::clone(&waiting.request))
    }

    /// The error, with the time after which there is probably room again.
    fn refusal(&mut self, code: Code, model: Option<&str>, why: &str, now: Instant) -> RouterError {
        let limit = self.limits.timeout;
        let ahead = u32::try_from(self.length(model) + 1).unwrap_or(u32::MAX);
        let pace = self.paces.get_mut(&model.map(str::to_owned));
        let rate = pace.map_or(0.0, |pace| pace.rate(now));
        let wait = if rate > 0.0 {
            limit.min(f64::from(ahead) / rate)
        } else {
            limit
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "1 to 60"
        )]
        let seconds = wait.ceil().clamp(1.0, MAX_RETRY_AFTER) as u32;
        let engines = model.map_or("All engines".to_owned(), |model| {
            format!("All engines of model '{model}'")
        });
        let text = format!("{engines} are busy: {why}; try again in {seconds} s");
        RouterError::new(code, text).with_retry_after(seconds)
    }
}

/// Hands out places at engines, and keeps those waiting for whom there is none.
pub struct WaitingRoom {
    store: Arc<TableStore>,
    book: Arc<LoadBook>,
}

impl WaitingRoom {
    /// The waiting room of the engines in `book`.
    pub fn new(store: Arc<TableStore>, book: Arc<LoadBook>) -> Arc<Self> {
        let room = Arc::new(Self { store, book });
        let weak: Weak<Self> = Arc::downgrade(&room);
        room.book.set_on_free(Box::new(move |book, now| {
            if let Some(room) = weak.upgrade() {
                room.freed(book, now);
            }
        }));
        room
    }

    /// Go by these settings from now on.
    pub fn configure(&self, rules: Rules, limits: RoomLimits) {
        let mut book = self.book.lock();
        book.queues.rules = rules;
        book.queues.limits = limits;
    }

    /// The models for which requests wait (None: any), and how many.
    pub fn lengths(&self) -> Vec<(Option<String>, usize)> {
        let book = self.book.lock();
        let mut lengths: BTreeMap<Option<String>, usize> = BTreeMap::new();
        for ((model, _), queue) in &book.queues.by_key {
            *lengths.entry(model.clone()).or_default() += queue.len();
        }
        lengths.into_iter().collect()
    }

    /// A place at an engine, or in a queue, for a request that keeps `size` bytes in memory.
    pub fn ask(self: &Arc<Self>, request: &Request, size: usize, now: Instant) -> Asked {
        let mut book = self.book.lock();
        if request.tried.is_empty() {
            book.retries.request();
        }
        if !book.queues.is_queue(request.model.as_deref()) {
            let rules = book.queues.rules;
            if let Some(answer) = self.place(&mut book, request, rules, now) {
                return Asked::Now(answer);
            }
        }
        self.enter(&mut book, request, size as u64, now)
    }

    /// None: all engines are full.
    fn place(
        &self,
        book: &mut Book,
        request: &Request,
        rules: Rules,
        now: Instant,
    ) -> Option<Answer> {
        Some(
            match choose(&self.store.peek(), request, book, now, rules) {
                Ok(Ok(choice)) => {
                    let bytes = request.prompt_bytes;
                    let in_flight = self.book.begin(book, &choice.service, now, bytes);
                    Answer::Place(Place { choice, in_flight })
                }
                Ok(Err(Nobody::Full)) => return None,
                Ok(Err(Nobody::Tried)) => Answer::Tried,
                Err(error) => Answer::Refused(error),
            },
        )
    }

    fn enter(
        self: &Arc<Self>,
        book: &mut Book,
        request: &Request,
        size: u64,
        now: Instant,
    ) -> Asked {
        let model = request.model.as_deref();
        if !book.queues.has_room(model, size) {
            let why = format!("{} requests wait already", book.queues.length(model));
            let answer = self.last_choice(book, request, now);
            let refused =
                || Answer::Refused(book.queues.refusal(Code::Overloaded, model, &why, now));
            return Asked::Now(answer.unwrap_or_else(refused));
        }
        let key = (request.model.clone(), request.tried.clone());
        let (tell, answer) = oneshot::channel();
        let waiting = Waiting {
            request: Arc::new(request.clone()),
            size,
            tell,
        };
        Asked::Later(Ticket {
            room: Arc::clone(self),
            number: book.queues.push(&key, waiting, now),
            key,
            answer,
        })
    }

    /// Better an engine that asked for a pause than no answer at all.
    fn last_choice(&self, book: &mut Book, request: &Request, now: Instant) -> Option<Answer> {
        let rules = Rules {
            last_choice: true,
            ..book.queues.rules
        };
        let answer = self.place(book, request, rules, now);
        answer.filter(|answer| matches!(answer, Answer::Place(_)))
    }

    /// It has waited for as long as it may: what is told now.
    pub fn late(&self, mut ticket: Ticket, now: Instant) -> Answer {
        let mut book = self.book.lock();
        let Some(request) = book.queues.request(&ticket.key, ticket.number) else {
            // Told in this very moment, by another thread.
            return ticket.answer.try_recv().unwrap_or_else(|_| nothing_told());
        };
        let limit = json::general(book.queues.limits.timeout);
        let why = format!("none had room within {limit} s");
        let model = request.model.as_deref();
        if let Some(answer) = self.last_choice(&mut book, &request, now) {
            return answer;
        }
        Answer::Refused(book.queues.refusal(Code::QueueTimeout, model, &why, now))
    }

    /// Look again when the table has changed, and now and then; for ever.
    pub async fn run(self: Arc<Self>) {
        let mut table = self.store.current();
        loop {
            if let Ok(changed) = timeout(LOOK_AGAIN, self.store.changed(&table)).await {
                table = changed;
            }
            self.look_again(Instant::now());
        }
    }

    /// Serve whom engines that came, or have room again, can serve.
    pub fn look_again(&self, now: Instant) {
        let mut book = self.book.lock();
        while self.serve_next(&mut book, now) {}
    }

    /// One request has left its engine, so one can be served.
    fn freed(&self, book: &mut Book, now: Instant) {
        self.serve_next(book, now);
    }

    /// Hand a place to the longest waiting that can be served; false when there is none.
    fn serve_next(&self, book: &mut Book, now: Instant) -> bool {
        let mut heads = book.queues.heads().into_iter();
        heads.any(|(number, key)| self.serve_one(book, &key, number, now))
    }

    fn serve_one(&self, book: &mut Book, key: &Key, number: u64, now: Instant) -> bool {
        let Some(request) = book.queues.request(key, number) else {
            return false;
        };
        let rules = book.queues.rules;
        let Some(answer) = self.place(book, &request, rules, now) else {
            return false;
        };
        if let (Answer::Place(_), Some(pace)) = (&answer, book.queues.paces.get_mut(&key.0)) {
            pace.count(now);
        }
        let Some(waiting) = book.queues.remove(key, number) else {
            return false;
        };
        if let Err(Answer::Place(mut place)) = waiting.tell.send(answer) {
            // Nobody listens; its guard must not ask for the lock that is held here.
            place.in_flight.count_out_of(book, Outcome::Neutral, now);
        }
        true
    }
}
