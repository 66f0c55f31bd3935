//! Waiting for an engine: in order, within the limits, and never past an engine's own.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use infini_router::router::engine::{Limits, Outcome};
use infini_router::router::load::{InFlight, LoadBook};
use infini_router::router::queue::{Answer, Asked, RoomLimits, Ticket, WaitingRoom};
use infini_router::router::selection::{Request, Rules};
use infini_router::router::table::{Service, TableStore};
use infini_router::utils::errors::{Code, RouterError};
use serde_json::json;
use tokio::time::Instant;

pub(crate) fn engine(name: &str, models: &str, limit: u32) -> Arc<Service> {
    let metadata = json!({"type": "openai-api", "max_concurrency": limit});
    Arc::new(Service {
        name: name.to_owned(),
        models: models.chars().map(String::from).collect(),
        metadata: metadata.as_object().unwrap().clone(),
        ..Service::default()
    })
}

fn one() -> Arc<Service> {
    engine("a", "m", 1)
}

/// A waiting room with its engines, at a time that the test moves.
pub(crate) struct House {
    pub(crate) now: Instant,
    pub(crate) book: Arc<LoadBook>,
    store: Arc<TableStore>,
    pub(crate) room: Arc<WaitingRoom>,
}

impl House {
    pub(crate) fn new(services: &[Arc<Service>]) -> Self {
        Self::with(services, RoomLimits::default())
    }

    fn with(services: &[Arc<Service>], limits: RoomLimits) -> Self {
        let book = Arc::new(LoadBook::new(Limits::default(), || 0.5));
        let following = Arc::clone(&book);
        let now = Instant::now();
        let store = Arc::new(TableStore::new(Some(Box::new(move |last, new| {
            following.follow(last, new, now);
        }))));
        store.set_services(services.to_vec(), true);
        let room = WaitingRoom::new(Arc::clone(&store), Arc::clone(&book));
        room.configure(Rules::default(), limits);
        Self {
            now,
            book,
            store,
            room,
        }
    }

    fn later(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    pub(crate) fn ask_for(&self, model: Option<&str>, size: usize, tried: &[&str]) -> Asked {
        let request = Request {
            model: model.map(str::to_owned),
            tried: tried.iter().map(|&name| name.to_owned()).collect(),
            ..Request::default()
        };
        self.room.ask(&request, size, self.now)
    }

    /// A request that has to wait.
    fn enter(&self, model: &str) -> Ticket {
        waiting(self.ask_for(Some(model), 10, &[]))
    }

    /// A request that gets a place at once.
    fn take(&self, model: &str) -> InFlight {
        match self.ask_for(Some(model), 10, &[]) {
            Asked::Now(Answer::Place(place)) => place.in_flight,
            _ => panic!("no place"),
        }
    }

    fn refusal(&self, size: usize, model: &str) -> RouterError {
        match self.ask_for(Some(model), size, &[]) {
            Asked::Now(Answer::Refused(error)) => error,
            _ => panic!("not refused"),
        }
    }

    fn free(&self, place: InFlight) {
        place.release(Outcome::Ok, self.now);
    }

    pub(crate) fn waiting(&self) -> usize {
        let total = self.book.waiting();
        let lengths = self.room.lengths();
        assert_eq!(
            lengths.iter().map(|(_, length)| length).sum::<usize>(),
            total
        );
        total
    }
}

fn waiting(asked: Asked) -> Ticket {
    match asked {
        Asked::Later(ticket) => ticket,
        Asked::Now(_) => panic!("need not wait"),
    }
}

/// What a waiting request was told, if anything.
pub(crate) fn told(ticket: &mut Ticket) -> Option<Answer> {
    match ticket.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

/// The engine at which a waiting request got a place, and that.
fn served(ticket: &mut Ticket) -> (String, InFlight) {
    match told(ticket) {
        Some(Answer::Place(place)) => (place.choice.service.name.clone(), place.in_flight),
        _ => panic!("not served"),
    }
}

fn code(answer: Option<Answer>) -> Option<Code> {
    match answer {
        Some(Answer::Refused(error)) => Some(error.code),
        _ => None,
    }
}

#[test]
fn a_full_engine_makes_requests_wait_and_serves_them_in_their_order() {
    let house = House::new(&[engine("a", "m", 2)]);
    let mut running = VecDeque::from([house.take("m"), house.take("m")]);
    let tickets: Vec<_> = (0..5).map(|_| house.enter("m")).collect();
    assert_eq!(house.room.lengths(), [(Some("m".to_owned()), 5)]);
    for mut ticket in tickets {
        house.free(running.pop_front().unwrap());
        assert_eq!(house.book.in_flight(), 2);
        running.push_back(served(&mut ticket).1);
    }
    assert_eq!(house.waiting(), 0);
}

#[test]
fn who_comes_later_does_not_overtake() {
    let house = House::new(&[one()]);
    let running = house.take("m");
    let mut first = house.enter("m");
    let both = vec![one(), engine("b", "m", 1)];
    house.store.set_services(both, true); // room, which the first has yet to see
    let mut second = house.enter("m");
    house.room.look_again(house.now);
    let at_b = served(&mut first);
    assert_eq!(at_b.0, "b");
    house.free(running);
    assert_eq!(served(&mut second).0, "a");
}

#[test]
fn an_engine_of_several_models_serves_who_has_waited_longest() {
    let house = House::new(&[engine("a", "mn", 1)]);
    let mut running = house.take("m");
    let mut tickets: Vec<_> = ["n", "m", "n", "m"].map(|model| house.enter(model)).into();
    for number in 0..4 {
        house.free(running);
        let later = &mut tickets[number..];
        running = served(&mut later[0]).1;
        assert!(later[1..].iter_mut().all(|ticket| told(ticket).is_none()));
    }
}

#[test]
fn one_models_burst_does_not_hold_up_another() {
    let house = House::new(&[one(), engine("b", "n", 1)]);
    let _running = house.take("m");
    let _burst: Vec<_> = (0..100).map(|_| house.enter("m")).collect();
    house.take("n");
}

#[test]
fn what_names_no_model_waits_for_any_engine() {
    let house = House::new(&[one(), engine("b", "n", 1)]);
    let _other = house.take("m");
    let running = house.take("n");
    let mut anybody = waiting(house.ask_for(None, 10, &[]));
    assert_eq!(house.room.lengths(), [(None, 1)]);
    house.free(running);
    assert_eq!(served(&mut anybody).0, "b");
}

#[test]
fn a_retry_waits_for_an_engine_that_it_has_not_tried() {
    let house = House::new(&[one(), engine("b", "m", 1)]);
    let (first, second) = (house.take("m"), house.take("m")); // at a, at b
    let mut retry = waiting(house.ask_for(Some("m"), 10, &["a"]));
    let mut fresh = house.enter("m");
    house.free(first); // no use to the retry, which is first in line
    assert!(told(&mut retry).is_none());
    let at_a = served(&mut fresh);
    assert_eq!(at_a.0, "a");
    house.free(second);
    assert_eq!(served(&mut retry).0, "b");
}

#[test]
fn a_retry_that_has_tried_all_is_told_so() {
    let house = House::new(&[one(), engine("b", "m", 1)]);
    let _held = (house.take("m"), house.take("m"));
    let mut retry = waiting(house.ask_for(Some("m"), 10, &["a"]));
    let all = house.ask_for(Some("m"), 10, &["a", "b"]);
    assert!(matches!(all, Asked::Now(Answer::Tried)));
    house.store.set_services(vec![one()], true);
    house.room.look_again(house.now);
    assert!(matches!(told(&mut retry), Some(Answer::Tried)));
}

#[test]
fn the_queue_is_bounded_by_requests_and_by_bytes() {
    let limits = RoomLimits {
        size: 3,
        bytes: 100,
        ..RoomLimits::default()
    };
    let house = House::with(&[one(), engine("n", "n", 1)], limits);
    let _held = (house.take("m"), house.take("n"));
    let _queue = [0; 3].map(|_| house.enter("m"));
    let refused = house.refusal(10, "m");
    assert_eq!(
        (refused.code, refused.http_status()),
        (Code::Overloaded, 429)
    );
    assert_eq!(
        refused.message,
        "All engines of model 'm' are busy: 3 requests wait already; try again in 30 s"
    );
    let _large = waiting(house.ask_for(Some("n"), 70, &[]));
    assert_eq!(house.refusal(1, "n").code, Code::Overloaded);
}

#[test]
fn who_leaves_makes_room_and_is_not_served() {
    let limits = RoomLimits {
        size: 2,
        bytes: 20,
        ..RoomLimits::default()
    };
    let house = House::with(&[one()], limits);
    let running = house.take("m");
    let gone = house.enter("m");
    let mut stays = house.enter("m");
    drop(gone);
    assert_eq!(house.waiting(), 1);
    let _third = house.enter("m");
    house.free(running);
    assert_eq!(served(&mut stays).0, "a");
}

#[test]
fn who_leaves_with_a_place_in_hand_gives_it_to_the_next() {
    let house = House::new(&[one()]);
    let running = house.take("m");
    let (first, mut second) = (house.enter("m"), house.enter("m"));
    house.free(running);
    drop(first); // it was told, but did not listen
    assert_eq!(served(&mut second).0, "a");
    assert_eq!((house.book.in_flight(), house.waiting()), (0, 0));
}

#[test]
fn retry_after_is_the_time_that_the_queue_takes_to_drain() {
    let limits = RoomLimits {
        size: 8,
        ..RoomLimits::default()
    };
    let mut house = House::with(&[one()], limits);
    let mut running = house.take("m");
    let mut queue: VecDeque<_> = (0..8).map(|_| house.enter("m")).collect();
    assert_eq!(house.refusal(1, "m").retry_after, Some(30)); // who waits is gone by then
    for _ in 0..4 {
        house.later(0.5); // two a second
        house.free(running);
        running = served(&mut queue.pop_front().unwrap()).1;
        queue.push_back(house.enter("m"));
    }
    let refused = house.refusal(1, "m");
    assert_eq!(refused.retry_after, Some(5)); // nine at two a second
    let lines = String::from_utf8(refused.header_lines()).unwrap();
    assert!(lines.contains("retry-after: 5\r\n"), "{lines}");
}

#[test]
fn who_has_waited_too_long_is_told_when_to_come_again() {
    let limits = RoomLimits {
        timeout: 5.0,
        ..RoomLimits::default()
    };
    let house = House::with(&[one()], limits);
    let _running = house.take("m");
    let ticket = house.enter("m");
    let Answer::Refused(error) = house.room.late(ticket, house.now) else {
        panic!("not refused");
    };
    assert_eq!((error.code, error.http_status()), (Code::QueueTimeout, 503));
    assert_eq!(
        error.message,
        "All engines of model 'm' are busy: none had room within 5 s; try again in 5 s"
    );
    assert_eq!((error.retry_after, house.waiting()), (Some(5), 0));
}

#[test]
fn who_is_late_and_was_told_in_that_moment_has_its_place() {
    let house = House::new(&[one()]);
    let running = house.take("m");
    let ticket = house.enter("m");
    house.free(running);
    let answer = house.room.late(ticket, house.now);
    assert!(matches!(answer, Answer::Place(_)));
    drop(answer);
    assert_eq!(house.book.in_flight(), 0);
}

#[test]
fn an_engine_that_asks_for_a_pause_is_a_last_choice() {
    let limits = RoomLimits {
        size: 1,
        ..RoomLimits::default()
    };
    let house = House::with(&[engine("a", "m", 2), engine("b", "m", 1)], limits);
    let mut busy = house.take("m");
    let outcome = busy.answered(429, Some(60.0), false, house.now);
    busy.release(outcome, house.now);
    let _at_b = house.take("m");
    let ticket = house.enter("m"); // rather wait for b
    let _at_a = house.take("m"); // no room to wait in: a, after all
    let late = house.room.late(ticket, house.now);
    assert!(matches!(late, Answer::Place(place) if place.choice.service.name == "a"));
}

#[test]
fn engines_that_come_serve_who_waits_and_a_model_that_goes_ends_the_wait() {
    let house = House::new(&[one()]);
    let _running = house.take("m");
    let (mut first, mut second) = (house.enter("m"), house.enter("m"));
    house
        .store
        .set_services(vec![one(), engine("b", "m", 1)], true);
    house.room.look_again(house.now);
    let at_b = served(&mut first);
    assert_eq!(at_b.0, "b");
    house.store.set_services(Vec::new(), true);
    house.room.look_again(house.now);
    assert_eq!(code(told(&mut second)), Some(Code::NoHealthyEngine));
}

#[tokio::test(start_paused = true)]
async fn the_room_sees_a_new_table_at_once_and_the_rest_by_and_by() {
    let house = House::new(&[one()]);
    let _running = house.take("m");
    let mut ticket = house.enter("m");
    let looking = tokio::spawn(Arc::clone(&house.room).run());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(told(&mut ticket).is_none());
    house
        .store
        .set_services(vec![one(), engine("b", "m", 1)], true);
    let answer = tokio::time::timeout(
        Duration::from_millis(10),
        poll_fn(|context| ticket.poll(context)),
    );
    assert!(matches!(answer.await, Ok(Answer::Place(_))));
    looking.abort();
}
