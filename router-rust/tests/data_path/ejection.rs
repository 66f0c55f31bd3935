//! Engines that fail are left alone for a while, then tried with one request.

use std::sync::Arc;
use std::time::Duration;

use infini_router::router::engine::Outcome;
use infini_router::router::load::LoadBook;
use infini_router::router::table::Service;
use tokio::time::Instant;

use crate::load::{begin, book, end, engine, named, view, with_ejection};

fn ejected(book: &LoadBook, now: Instant) -> bool {
    view(book, now).ejected
}

#[test]
fn three_faults_in_a_row_eject_and_the_time_doubles_up_to_a_minute() {
    let (book, mut now) = (book(), Instant::now());
    for _ in 0..3 {
        assert!(!ejected(&book, now));
        end(&book, Outcome::EngineFault, now);
    }
    for seconds in [5, 10, 20, 40, 60, 60] {
        let until = book.lock().of(&engine()).ejected_until.unwrap();
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
        let again = book.lock().of(&engine()).ejected_until.unwrap();
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
    assert_eq!(view(&book, now).error_count, 10);
}

#[test]
fn what_is_not_the_engines_fault_changes_nothing() {
    let (book, now) = (book(), Instant::now());
    for _ in 0..200 {
        end(&book, Outcome::Neutral, now);
        drop(begin(&book, &engine(), now));
    }
    assert_eq!(view(&book, now).error_count, 0);
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
fn after_a_success_an_ejection_is_the_first_again() {
    let (book, now) = with_ejection(Instant::now());
    let until = || book.lock().of(&engine()).ejected_until.unwrap();
    end(&book, Outcome::EngineFault, now);
    let now = until();
    end(&book, Outcome::Ok, now);
    for _ in 0..3 {
        end(&book, Outcome::EngineFault, now);
    }
    assert_eq!(until() - now, Duration::from_secs(5));
}

#[test]
fn the_head_of_a_long_stream_ends_the_probation() {
    let (book, now) = with_ejection(Instant::now());
    let mut probation = begin(&book, &engine(), now);
    probation.answered(200, None, true, now);
    assert!(!ejected(&book, now));
}

#[test]
fn a_probation_request_whose_client_leaves_says_nothing() {
    let (book, now) = with_ejection(Instant::now());
    drop(begin(&book, &engine(), now));
    assert!(book.lock().of(&engine()).ejected_until.is_some());
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
        book.lock().of(&strict).ejected_until,
        Some(now + Duration::from_secs(30))
    );
    for _ in 0..20 {
        begin(&book, &never, now).release(Outcome::EngineFault, now);
    }
    assert!(!book.view(&never, now).ejected);
}

#[test]
fn a_probation_request_that_meets_a_busy_engine_decides_nothing() {
    let (book, now) = with_ejection(Instant::now());
    let mut probation = begin(&book, &engine(), now);
    let outcome = probation.answered(429, None, false, now);
    probation.release(outcome, now);
    assert!(book.lock().of(&engine()).ejected_until.is_some());
    assert!(!ejected(&book, now));
}
