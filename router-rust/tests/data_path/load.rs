//! Load is counted in once and out once; only an engine's own faults count against it.

use std::sync::Arc;
use std::time::Duration;

use infini_router::router::load::{InFlight, LoadBook, Outcome, RetryBudget};
use infini_router::router::table::Service;
use tokio::time::Instant;

fn engine() -> Arc<Service> {
    named("a")
}

fn named(name: &str) -> Arc<Service> {
    Arc::new(Service {
        name: name.to_owned(),
        ..Service::default()
    })
}

fn book() -> Arc<LoadBook> {
    Arc::new(LoadBook::with_jitter(3, || 0.5))
}

fn begin(book: &Arc<LoadBook>, service: &Arc<Service>, now: Instant) -> InFlight {
    book.begin(&mut book.lock(), service, now)
}

fn end(book: &Arc<LoadBook>, outcome: Outcome, now: Instant) {
    begin(book, &engine(), now).release(outcome, now);
}

fn ejected(book: &LoadBook, now: Instant) -> bool {
    book.view("a", now).ejected
}

/// A book whose engine is ejected, and when that ends.
fn with_ejection(now: Instant) -> (Arc<LoadBook>, Instant) {
    let book = book();
    for _ in 0..3 {
        end(&book, Outcome::EngineFault, now);
    }
    let until = book.lock().of("a").ejected_until.unwrap();
    (book, until)
}

#[test]
fn in_flight_is_zero_after_any_mix_of_ends() {
    let mut random = fastrand::Rng::with_seed(5);
    let outcomes = [Outcome::Ok, Outcome::EngineFault, Outcome::Neutral];
    for _ in 0..300 {
        let (book, now) = (book(), Instant::now());
        let count = random.u32(..20);
        let guards: Vec<_> = (0..count).map(|_| begin(&book, &engine(), now)).collect();
        assert_eq!(
            (book.in_flight(), book.view("a", now).in_flight),
            (count, count)
        );
        for mut guard in guards {
            if random.bool() {
                guard.first_byte(random.choice(outcomes).unwrap(), now);
            }
            if random.bool() {
                guard.release(random.choice(outcomes).unwrap(), now);
            }
        }
        let view = book.view("a", now);
        assert_eq!((book.in_flight(), view.in_flight), (0, 0));
        assert_eq!(view.request_count, u64::from(count));
        assert!(!book.lock().of("a").on_probation);
    }
}

#[test]
fn three_faults_in_a_row_eject_and_the_time_doubles_up_to_a_minute() {
    let (book, mut now) = (book(), Instant::now());
    for _ in 0..3 {
        assert!(!ejected(&book, now));
        end(&book, Outcome::EngineFault, now);
    }
    for seconds in [5, 10, 20, 40, 60, 60] {
        let until = book.lock().of("a").ejected_until.unwrap();
        assert_eq!(until - now, Duration::from_secs(seconds));
        assert!(ejected(&book, now));
        now = until;
        assert!(!ejected(&book, now));
        end(&book, Outcome::EngineFault, now);
    }
}

#[test]
fn ejections_of_long_ago_are_forgotten() {
    let (book, until) = with_ejection(Instant::now());
    for (later, span) in [(1, 10), (700, 5)] {
        let now = until + Duration::from_secs(later);
        end(&book, Outcome::EngineFault, now);
        let again = book.lock().of("a").ejected_until.unwrap();
        assert_eq!(again - now, Duration::from_secs(span));
    }
}

#[test]
fn success_between_faults_starts_the_count_again() {
    let (book, now) = (book(), Instant::now());
    for outcome in [Outcome::EngineFault, Outcome::EngineFault, Outcome::Ok].repeat(5) {
        end(&book, outcome, now);
    }
    assert!(!ejected(&book, now));
    assert_eq!(book.view("a", now).error_count, 10);
}

#[test]
fn what_is_not_the_engines_fault_changes_nothing() {
    let (book, now) = (book(), Instant::now());
    for _ in 0..200 {
        end(&book, Outcome::Neutral, now);
        drop(begin(&book, &engine(), now));
    }
    assert_eq!(book.view("a", now).error_count, 0);
    assert!(!book.lock().any_ejected);
}

#[test]
fn exactly_one_request_is_let_through_after_an_ejection() {
    let (book, now) = with_ejection(Instant::now());
    let probation = begin(&book, &engine(), now);
    assert!(ejected(&book, now));
    probation.release(Outcome::Ok, now);
    assert!(!ejected(&book, now));
    assert!(!book.lock().any_ejected);
}

#[test]
fn the_head_of_a_long_stream_ends_the_probation() {
    let (book, now) = with_ejection(Instant::now());
    let mut probation = begin(&book, &engine(), now);
    probation.first_byte(Outcome::Ok, now);
    assert!(!ejected(&book, now));
}

#[test]
fn a_probation_request_whose_client_leaves_says_nothing() {
    let (book, now) = with_ejection(Instant::now());
    drop(begin(&book, &engine(), now));
    assert!(book.lock().of("a").ejected_until.is_some());
    assert!(!ejected(&book, now));
}

#[test]
fn answers_to_older_requests_do_not_end_an_ejection() {
    let (book, now) = (book(), Instant::now());
    let old = begin(&book, &engine(), now);
    for _ in 0..3 {
        end(&book, Outcome::EngineFault, now);
    }
    old.release(Outcome::Ok, now + Duration::from_secs(1));
    assert!(ejected(&book, now + Duration::from_secs(1)));
}

#[test]
fn a_service_may_set_its_own_limits() {
    let (book, now) = (book(), Instant::now());
    let strict = Arc::new(Service {
        max_fails: Some(1),
        fail_timeout: Some(30.0),
        ..Service::clone(&named("s"))
    });
    let never = Arc::new(Service {
        max_fails: Some(0),
        ..Service::clone(&named("n"))
    });
    begin(&book, &strict, now).release(Outcome::EngineFault, now);
    assert_eq!(
        book.lock().of("s").ejected_until,
        Some(now + Duration::from_secs(30))
    );
    for _ in 0..20 {
        begin(&book, &never, now).release(Outcome::EngineFault, now);
    }
    assert!(!book.view("n", now).ejected);
}

#[test]
fn counters_of_engines_that_are_gone_are_dropped_once_idle() {
    let (book, now) = (book(), Instant::now());
    let guard = begin(&book, &engine(), now);
    book.forget_missing(&[]);
    assert_eq!(book.view("a", now).in_flight, 1);
    guard.release(Outcome::Ok, now);
    book.forget_missing(&[]);
    assert_eq!(book.view("a", now).request_count, 0);
}

#[test]
fn retries_are_a_fifth_of_the_requests_or_three_a_second() {
    let (mut budget, now) = (RetryBudget::default(), Instant::now());
    let taken = |budget: &mut RetryBudget, tries: u32, second: u64| {
        (0..tries)
            .filter(|_| budget.take(now + Duration::from_secs(second)))
            .count()
    };
    assert_eq!(taken(&mut budget, 100, 0), 30);
    (0..1000).for_each(|_| budget.request());
    assert_eq!(taken(&mut budget, 1000, 1), 170);
    assert_eq!(taken(&mut budget, 100, 40), 30);
}
