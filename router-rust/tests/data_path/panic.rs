//! Who is chosen when probes leave few engines.

use std::collections::HashSet;
use std::sync::Arc;

use infini_router::router::engine::{Limits, Outcome};
use infini_router::router::load::LoadBook;
use infini_router::router::selection::{Choice, Request, Rules, choose, explain};
use infini_router::router::table::{Service, ServiceTable};
use infini_router::utils::errors::{Code, RouterError};
use serde_json::json;
use tokio::time::Instant;

use crate::rig::letters;

fn engine(name: &str, model: &str, status: &str) -> Service {
    let metadata = json!({ "type": "openai-api" });
    Service {
        name: name.to_owned(),
        models: vec![model.to_owned()],
        metadata: metadata.as_object().unwrap().clone(),
        status: status.to_owned(),
        ..Service::default()
    }
}

fn table_of(services: Vec<Service>, down: &str) -> ServiceTable {
    let services = services.into_iter().map(Arc::new).collect();
    let down: HashSet<_> = down.chars().map(String::from).collect();
    let named = HashSet::from(["m".to_owned(), "n".to_owned()]);
    ServiceTable::new(services, true, down, Arc::new(named))
}

/// Engines named by single letters that all serve "m".
fn table(names: &str, down: &str) -> ServiceTable {
    let engines = names
        .chars()
        .map(|name| engine(&name.to_string(), "m", "running"));
    table_of(engines.collect(), down)
}

fn request(tried: &str) -> Request {
    Request {
        model: Some("m".to_owned()),
        tried: tried.chars().map(String::from).collect(),
        ..Request::default()
    }
}

fn chosen(table: &ServiceTable, tried: &str, book: &LoadBook) -> Option<Choice> {
    let (mut book, now) = (book.lock(), Instant::now());
    choose(table, &request(tried), &mut book, now, Rules::default())
        .unwrap()
        .ok()
}

fn picks(table: &ServiceTable, count: usize, book: &LoadBook) -> String {
    let names = (0..count).map(|_| chosen(table, "", book).unwrap().service.name.clone());
    names.collect()
}

fn picked(table: &ServiceTable, count: usize) -> String {
    picks(table, count, &LoadBook::default())
}

fn with_max_fails(max_fails: u32) -> Arc<LoadBook> {
    let limits = Limits {
        max_fails,
        ..Limits::default()
    };
    Arc::new(LoadBook::new(limits, || 0.5))
}

fn end_one(book: &Arc<LoadBook>, service: &Arc<Service>, outcome: Outcome) {
    let now = Instant::now();
    let in_flight = book.begin(&mut book.lock(), service, now, 0);
    in_flight.release(outcome, now);
}

#[test]
fn when_probes_leave_less_than_half_the_others_are_tried_too() {
    let half = table("abcd", "cd");
    assert_eq!((picked(&half, 4).as_str(), half.panic()), ("abab", false));
    let fewer = table("abcd", "bcd");
    assert_eq!(
        (picked(&fewer, 8).as_str(), fewer.panic()),
        ("abcdabcd", true)
    );
    assert_eq!(picked(&table("a", "a"), 2), "aa");
}

#[test]
fn in_panic_engines_that_are_down_and_failed_a_request_wait_for_the_others() {
    let (given, book) = (table("abcd", "bcd"), with_max_fails(0));
    end_one(&book, &given.services[0], Outcome::EngineFault);
    end_one(&book, &given.services[1], Outcome::EngineFault);
    assert_eq!(picks(&given, 6, &book), "acdacd");
    let everyone = table("abcd", "abcd");
    end_one(&book, &everyone.services[2], Outcome::EngineFault);
    assert_eq!(picks(&everyone, 2, &book), "dd");
    end_one(&book, &everyone.services[3], Outcome::EngineFault);
    assert_eq!(letters(&picks(&everyone, 4, &book)), letters("abcd"));
    end_one(&book, &everyone.services[1], Outcome::Ok);
    assert_eq!(picks(&everyone, 2, &book), "bb");
}

#[test]
fn in_panic_ejection_and_what_was_tried_count_as_ever() {
    let (given, book) = (table("abcd", "bcd"), with_max_fails(1));
    end_one(&book, &given.services[0], Outcome::EngineFault);
    assert_eq!(letters(&picks(&given, 6, &book)), letters("bcd"));
    assert_eq!(chosen(&given, "bc", &book).unwrap().service.name, "d");
    assert!(chosen(&given, "abcd", &book).is_none());
}

#[test]
fn panic_is_a_matter_of_each_model_and_of_engines_that_should_run() {
    let running = |name, model| engine(name, model, "running");
    let engines = vec![running("a", "m"), running("b", "m"), running("o", "n")];
    let given = table_of(engines, "o");
    let panics = [Some("m"), Some("n"), None].map(|model| given.candidates(model).panic);
    assert_eq!((panics, given.panic()), ([false, true, false], true));
    let draining = |name| engine(name, "m", "draining");
    let engines = vec![
        running("a", "m"),
        draining("b"),
        draining("c"),
        draining("d"),
    ];
    assert!(!table_of(engines, "").panic());
    assert!(!table("", "").panic());
}

#[test]
fn an_engine_that_the_registry_takes_out_is_not_tried_in_panic() {
    let (book, now) = (LoadBook::default(), Instant::now());
    let given = table_of(vec![engine("a", "m", "draining")], "");
    let refused = choose(
        &given,
        &request(""),
        &mut book.lock(),
        now,
        Rules::default(),
    );
    assert_eq!(refused.unwrap_err().code, Code::NoHealthyEngine);
}

#[test]
fn a_choice_made_in_panic_says_so() {
    let says = |table: &ServiceTable| {
        let choice = chosen(table, "", &LoadBook::default()).unwrap();
        [choice.policy, choice.why, choice.suffix()].concat()
    };
    assert_eq!(says(&table("abcd", "bcd")), "round_robin; its turn; panic");
    assert_eq!(says(&table("a", "a")), "round_robin; only candidate; panic");
    assert_eq!(says(&table("ab", "")), "round_robin; its turn");
}

#[test]
fn a_connection_that_fails_in_panic_confirms_the_probes() {
    let given = table("abcd", "bcd");
    let failed = || RouterError::new(Code::ConnectFailed, "refused");
    let told = explain(failed(), &given, &request("ab"));
    assert_eq!(
        (told.code, told.param),
        (Code::NoHealthyEngine, Some("model"))
    );
    assert_eq!(told.message, "No healthy services available for model 'm'");
    assert_eq!(explain(failed(), &given, &request("bc")), failed()); // a is up
    let late = RouterError::new(Code::FirstByteTimeout, "late");
    assert_eq!(explain(late.clone(), &given, &request("a")), late);
}
