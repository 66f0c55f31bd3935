//! Load is counted in once and out once; only an engine's own faults count against it.

use std::sync::Arc;
use std::time::Duration;

use infini_router::router::engine::{FAILURE_PENALTY, Limits, LoadView, Outcome};
use infini_router::router::load::{InFlight, LoadBook};
use infini_router::router::table::{Service, ServiceTable};
use serde_json::{Value, json};
use tokio::time::Instant;

pub(crate) fn engine() -> Arc<Service> {
    named("a")
}

pub(crate) fn named(name: &str) -> Arc<Service> {
    Arc::new(Service {
        name: name.to_owned(),
        ..Service::default()
    })
}

pub(crate) fn book() -> Arc<LoadBook> {
    Arc::new(LoadBook::new(Limits::default(), || 0.5))
}

pub(crate) fn begin(book: &Arc<LoadBook>, service: &Arc<Service>, now: Instant) -> InFlight {
    book.begin(&mut book.lock(), service, now, 100)
}

pub(crate) fn view(book: &LoadBook, now: Instant) -> LoadView {
    book.view(&engine(), now)
}

pub(crate) fn end(book: &Arc<LoadBook>, outcome: Outcome, now: Instant) {
    begin(book, &engine(), now).release(outcome, now);
}

/// A book whose engine is ejected, and when that ends.
pub(crate) fn with_ejection(now: Instant) -> (Arc<LoadBook>, Instant) {
    let book = book();
    for _ in 0..3 {
        end(&book, Outcome::EngineFault, now);
    }
    let until = book.lock().of(&engine()).ejected_until.unwrap();
    (book, until)
}

#[test]
fn the_last_byte_that_came_is_remembered() {
    let (book, second) = (book(), Duration::from_secs(1));
    let before = Instant::now();
    let now = before + second;
    assert!(!book.heard_since("a", before));
    let running = begin(&book, &engine(), now);
    assert!(
        !book.heard_since("a", before),
        "a request says nothing of its answer"
    );
    running.heard(now + second);
    assert!(book.heard_since("a", now));
    assert!(!book.heard_since("a", now + second));
    running.release(Outcome::Ok, now + second);
    assert!(book.heard_since("a", now));
}

#[test]
fn counters_are_zero_after_any_mix_of_ends() {
    let mut random = fastrand::Rng::with_seed(5);
    let outcomes = [Outcome::Ok, Outcome::EngineFault, Outcome::Neutral];
    for _ in 0..300 {
        let (book, now) = (book(), Instant::now());
        let count = random.u32(..20);
        let guards: Vec<_> = (0..count).map(|_| begin(&book, &engine(), now)).collect();
        assert_eq!(
            (book.in_flight(), view(&book, now).in_flight),
            (count, count)
        );
        for mut guard in guards {
            if random.bool() {
                let status = random.choice([200, 200, 404, 429, 500, 503]).unwrap();
                guard.answered(status, None, random.bool(), now);
                guard.first_byte(now);
            }
            if random.bool() {
                guard.release(random.choice(outcomes).unwrap(), now);
            }
        }
        let view = view(&book, now);
        assert_eq!((book.in_flight(), view.in_flight), (0, 0));
        assert_eq!((view.prefill_requests, view.prefill_bytes), (0, 0));
        assert_eq!(view.request_count, u64::from(count));
        assert!(!book.lock().of(&engine()).on_probation);
    }
}

#[test]
fn counters_of_engines_that_are_gone_are_dropped_once_idle() {
    let (book, now) = (book(), Instant::now());
    let guard = begin(&book, &engine(), now);
    let nobody = ServiceTable::default();
    book.follow(&table(&[&engine()], ""), &nobody, now);
    assert_eq!(view(&book, now).in_flight, 1);
    guard.release(Outcome::Ok, now);
    let nobody = ServiceTable::default();
    book.follow(&table(&[&engine()], ""), &nobody, now);
    assert_eq!(view(&book, now).request_count, 0);
}

#[test]
fn a_prompt_counts_until_the_first_byte_of_its_answer() {
    let (book, now) = (book(), Instant::now());
    let mut guards: Vec<_> = [1000, 200, 30]
        .map(|size| book.begin(&mut book.lock(), &engine(), now, size))
        .into();
    let prefill = || {
        let view = view(&book, now);
        (view.prefill_requests, view.prefill_bytes)
    };
    assert_eq!(prefill(), (3, 1230));
    guards[0].answered(200, None, true, now); // a stream's head says nothing of its prompt
    assert_eq!(prefill(), (3, 1230));
    guards[0].first_byte(now);
    guards[1].answered(400, None, true, now);
    assert_eq!(prefill(), (1, 30));
    guards.clear();
    assert_eq!(prefill(), (0, 0));
}

/// A request whose first byte comes after so many seconds, at this time.
fn serve(book: &Arc<LoadBook>, seconds: f64, end: Instant) {
    let mut guard = begin(book, &engine(), end - Duration::from_secs_f64(seconds));
    guard.answered(200, None, false, end);
    guard.release(Outcome::Ok, end);
}

fn latency(book: &LoadBook, now: Instant) -> f64 {
    book.lock().of(&engine()).latency(now)
}

fn assert_near(seen: f64, wanted: f64) {
    assert!((seen - wanted).abs() < 1e-6, "{seen} instead of {wanted}");
}

fn start() -> (Arc<LoadBook>, impl Fn(f64) -> Instant) {
    let begun = Instant::now() + Duration::from_secs(100);
    (book(), move |seconds| {
        begun + Duration::from_secs_f64(seconds)
    })
}

#[test]
fn a_slow_answer_counts_at_once_and_fast_ones_by_and_by() {
    let (book, at) = start();
    serve(&book, 0.1, at(0.0));
    serve(&book, 1.0, at(1.0));
    assert_near(latency(&book, at(1.0)), 1.0);
    serve(&book, 0.1, at(11.0)); // ten seconds later, 1/e of the old is left
    assert_near(latency(&book, at(11.0)), 0.1 + 0.9 * (-1.0_f64).exp());
}

#[test]
fn an_estimate_fades_while_nothing_is_heard() {
    let (book, at) = start();
    serve(&book, 2.0, at(0.0));
    assert_near(latency(&book, at(10.0)), 2.0 * (-1.0_f64).exp());
}

#[test]
fn failing_fast_does_not_look_fast() {
    for status in [500, 502, 503, 0] {
        let (book, at) = start();
        serve(&book, 0.5, at(0.0));
        let mut guard = begin(&book, &engine(), at(1.0));
        let mut outcome = Outcome::EngineFault;
        if status > 0 {
            outcome = guard.answered(status, None, false, at(1.0));
        }
        guard.release(outcome, at(1.0));
        assert_near(latency(&book, at(1.0)), FAILURE_PENALTY);
    }
}

#[test]
fn a_refusal_says_nothing_of_the_time_that_an_answer_takes() {
    let (book, at) = start();
    serve(&book, 0.5, at(0.0));
    let mut guard = begin(&book, &engine(), at(0.0));
    let outcome = guard.answered(400, None, false, at(0.0));
    guard.release(outcome, at(0.0));
    assert_near(latency(&book, at(0.0)), 0.5);
}

#[test]
fn an_engine_that_is_busy_is_spared_and_not_blamed() {
    let cases = [
        (429, None, 1),
        (429, Some(20.0), 20),
        (429, Some(9999.0), 300),
        (429, Some(f64::INFINITY), 300),
        (503, Some(7.0), 7),
        (429, Some(0.0), 0),
    ];
    for (status, retry_after, pause) in cases {
        let (book, now) = (book(), Instant::now());
        for _ in 0..10 {
            let mut guard = begin(&book, &engine(), now);
            let outcome = guard.answered(status, retry_after, false, now);
            assert_eq!(outcome, Outcome::Busy);
            guard.release(outcome, now);
        }
        let after = now + Duration::from_secs(pause);
        let seen = view(&book, now);
        assert_eq!((seen.error_count, seen.ejected), (0, false));
        assert_eq!((seen.busy, view(&book, after).busy), (pause > 0, false));
        assert_eq!(book.lock().uneven_until, Some(after));
    }
}

#[test]
fn status_503_without_retry_after_stays_a_fault() {
    let (book, now) = (book(), Instant::now());
    let mut guard = begin(&book, &engine(), now);
    assert_eq!(guard.answered(503, None, false, now), Outcome::EngineFault);
}

#[test]
fn a_pause_is_not_made_shorter_by_a_later_answer() {
    let (book, now) = (book(), Instant::now());
    for retry_after in [60.0, 1.0] {
        begin(&book, &engine(), now).answered(429, Some(retry_after), false, now);
    }
    assert!(view(&book, now + Duration::from_secs(59)).busy);
}

/// A table of engines, of which those with these names are down.
fn table(services: &[&Arc<Service>], down: &str) -> ServiceTable {
    let services = services.iter().map(|&service| Arc::clone(service));
    let down = down.chars().map(String::from).collect();
    ServiceTable::new(services.collect(), true, down, Arc::default())
}

fn serving(name: &str, models: &[&str]) -> Arc<Service> {
    Arc::new(Service {
        models: models.iter().map(|&model| model.to_owned()).collect(),
        metadata: json!({"type": "openai-api"}).as_object().unwrap().clone(),
        ..Service::clone(&named(name))
    })
}

#[test]
fn an_engine_that_heals_or_comes_beside_others_begins_slowly() {
    let (book, now) = with_ejection(Instant::now());
    end(&book, Outcome::Ok, now);
    let warmth = |age| {
        let later = now + Duration::from_secs(age);
        book.lock()
            .of(&engine())
            .warmth(later, Duration::from_secs(10))
    };
    for (age, part) in [(0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)] {
        assert_near(warmth(age), part);
    }
}

#[test]
fn engines_that_come_together_or_alone_begin_at_once() {
    let [a, b] = ["a", "b"].map(|name| serving(name, &["m"]));
    let (unlearned, elsewhere) = (serving("b", &[]), serving("c", &["n"]));
    let both = || table(&[&a, &b], "");
    let one_down = || table(&[&a, &b], "b");
    let alone = || table(&[&a], "");
    let cases = [
        (ServiceTable::default(), both(), ""), // the router has just started
        (alone(), table(&[&a, &elsewhere], ""), ""), // nobody serves "n"
        (alone(), both(), "b"),
        (one_down(), both(), "b"),
        (both(), one_down(), ""),
        (table(&[&a, &unlearned], ""), both(), "b"), // its models are learned
    ];
    for (number, (last, new, warming)) in cases.iter().enumerate() {
        let (book, now) = (book(), Instant::now());
        book.follow(last, new, now);
        let services = new.services.iter();
        let names: String = services
            .filter(|service| book.view(service, now).warming)
            .map(|service| service.name.as_str())
            .collect();
        assert_eq!(names, *warming, "case {number}");
    }
}

#[test]
fn limits_of_metadata_win_if_they_can_be_used() {
    let limits = Limits {
        max_concurrency: 9,
        ..Limits::default()
    };
    let book = LoadBook::new(limits, || 0.5);
    let values = [
        json!(0),
        json!(-1),
        json!("4"),
        json!(true),
        json!(4.0),
        Value::Null,
    ];
    for (value, limit) in [(json!(4), 4)].into_iter().chain(values.map(|v| (v, 9))) {
        let mut service = Service::clone(&named(&value.to_string()));
        service.metadata.insert("max_concurrency".to_owned(), value);
        assert_eq!(book.lock().of(&service).limit, limit, "{}", service.name);
    }
}
