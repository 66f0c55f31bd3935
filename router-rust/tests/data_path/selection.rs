//! Who is chosen: candidates first, then the policy.

use std::collections::HashSet;
use std::sync::Arc;

use infini_router::router::selection::{Nobody, Rules, choose};
use infini_router::router::table::{Service, ServiceTable};
use infini_router::utils::errors::Code;
use serde_json::json;
use tokio::time::Instant;

use crate::rig::{book, engine, fail, hold, letters, pick, picks, plain, request, rules, table};

fn turns(table: &ServiceTable, count: usize) -> String {
    picks(table, count, "round_robin", &book())
}

#[test]
fn weights_interleave_smoothly_as_in_nginx() {
    let services = vec![engine("a", 5.0), engine("b", 1.0), engine("c", 1.0)];
    assert_eq!(turns(&table(services, ""), 14), "aabacaa".repeat(2));
}

#[test]
fn each_model_has_its_own_turns() {
    let mut both = engine("x", 1.0);
    both.models.push("n".to_owned());
    let (table, book) = (table(vec![both, engine("y", 1.0)], ""), book());
    for _ in 0..4 {
        pick(&table, &request(Some("n")), &book, "round_robin");
    }
    let names = picks(&table, 10, "round_robin", &book);
    assert_eq!(names.matches('x').count(), 5);
}

#[test]
fn weight_0_serves_only_when_nothing_else_is_left() {
    let mut backup = engine("c", 1.0);
    backup.backup = true;
    let services = vec![engine("a", 0.0), engine("b", 1.0), backup];
    assert_eq!(turns(&table(services.clone(), ""), 3), "bbb");
    assert_eq!(turns(&table(services.clone(), "b"), 3), "ccc");
    let more = [services, vec![engine("d", 0.0)]].concat();
    assert_eq!(turns(&table(more, "bc"), 4), "adad");
}

#[test]
fn only_engines_that_are_up_and_serve_the_model_are_candidates() {
    let mut draining = engine("c", 1.0);
    draining.status = "draining".to_owned();
    let mut other = engine("o", 1.0);
    other.models = vec!["n".to_owned()];
    let mut sitter = engine("s", 1.0);
    sitter.metadata = json!({"type": "mock"}).as_object().unwrap().clone();
    let services = vec![engine("a", 1.0), engine("b", 1.0), draining, other, sitter];
    assert_eq!(turns(&table(services, "b"), 3), "aaa");
}

#[test]
fn who_cannot_be_served_learns_why() {
    let refusal = |table: &ServiceTable, model: Option<&str>| {
        let mut request = request(model);
        request.stream = true;
        let chosen = choose(
            table,
            &request,
            &mut book().lock(),
            Instant::now(),
            rules("random"),
        );
        chosen.expect_err("refused").code
    };
    assert_eq!(
        refusal(&table(plain("a"), ""), Some("unknown")),
        Code::ModelNotFound
    );
    assert_eq!(
        refusal(&table(vec![], ""), Some("m")),
        Code::NoHealthyEngine
    );
    assert_eq!(refusal(&table(vec![], ""), None), Code::NoHealthyEngine);
    assert_eq!(
        refusal(&ServiceTable::default(), Some("x")),
        Code::NoHealthyEngine
    );
}

#[test]
fn a_retry_goes_to_another_engine_and_ends_when_none_is_left() {
    let (table, book) = (table(plain("ab"), ""), book());
    let mut again = request(Some("m"));
    again.tried = vec!["a".to_owned()];
    assert_eq!(
        pick(&table, &again, &book, "round_robin").as_deref(),
        Some("b")
    );
    again.tried.push("b".to_owned());
    assert_eq!(pick(&table, &again, &book, "round_robin"), None);
}

#[test]
fn ejected_engines_are_passed_over_but_never_more_than_half() {
    let (table, book) = (table(plain("abcd"), ""), book());
    for (number, left) in ["bcd", "cd", "abcd"].into_iter().enumerate() {
        fail(&book, &table.services[number], 3);
        assert_eq!(
            letters(&picks(&table, 12, "round_robin", &book)),
            letters(left)
        );
    }
}

#[test]
fn the_last_engine_of_a_model_is_never_ejected() {
    let (table, book) = (table(plain("a"), ""), book());
    fail(&book, &table.services[0], 30);
    assert_eq!(picks(&table, 3, "round_robin", &book), "aaa");
}

#[test]
fn warming_takes_nothing_from_who_has_no_other_engine() {
    let mut backup = engine("b", 1.0);
    backup.backup = true;
    let (all, book) = (table(vec![engine("a", 1.0), backup], ""), book());
    let others = ServiceTable::new(
        all.services[1..].to_vec(),
        true,
        HashSet::new(),
        Arc::default(),
    );
    book.follow(&others, &all, Instant::now());
    assert_eq!(picks(&all, 3, "round_robin", &book), "aaa"); // a backup is no other engine
}

fn limited(name: &str, limit: u32) -> Service {
    let mut service = engine(name, 1.0);
    let metadata = &mut service.metadata;
    metadata.insert("max_concurrency".to_owned(), json!(limit));
    service
}

#[test]
fn engines_at_their_limit_are_passed_over_and_others_before_them_come_after() {
    let mut services = [
        limited("a", 2),
        limited("b", 1),
        limited("s", 1),
        limited("z", 1),
    ];
    services[2].backup = true;
    services[3].weight = 0.0;
    let (table, book) = (table(services.into(), ""), book());
    let (mut names, mut held) = (String::new(), Vec::new());
    for _ in 0..5 {
        let name = pick(&table, &request(Some("m")), &book, "round_robin").unwrap();
        let service = table.services.iter().find(|s| s.name == name).unwrap();
        held.extend(hold(&book, service, 1));
        names.push_str(&name);
    }
    assert_eq!(names, "abasz");
    let nobody = |tried: &str| {
        let mut request = request(Some("m"));
        request.tried = tried.chars().map(String::from).collect();
        let now = Instant::now();
        let chosen = choose(&table, &request, &mut book.lock(), now, rules("random"));
        chosen.unwrap().unwrap_err()
    };
    assert_eq!(nobody(""), Nobody::Full);
    assert_eq!(nobody("abs"), Nobody::Full);
    assert_eq!(nobody("absz"), Nobody::Tried);
}

#[test]
fn an_engine_that_asked_for_a_pause_comes_last() {
    let (table, book) = (table(vec![engine("a", 1.0), limited("b", 1)], ""), book());
    let mut busy = hold(&book, &table.services[0], 1);
    busy[0].answered(429, Some(60.0), false, Instant::now());
    assert_eq!(picks(&table, 4, "round_robin", &book), "bbbb");
    let _held = hold(&book, &table.services[1], 1);
    assert_eq!(
        pick(&table, &request(Some("m")), &book, "round_robin"),
        None
    );
    let last_choice = Rules {
        last_choice: true,
        ..rules("round_robin")
    };
    let now = Instant::now();
    let chosen = choose(
        &table,
        &request(Some("m")),
        &mut book.lock(),
        now,
        last_choice,
    );
    assert_eq!(chosen.unwrap().unwrap().service.name, "a");
}

#[test]
fn long_prompts_prefer_a_static_cache_and_others_a_paged_one() {
    let with = |name: &str, kind: &str| {
        let mut service = engine(name, 1.0);
        service
            .metadata
            .insert("cache_type".to_owned(), json!(kind));
        service
    };
    let (table, book) = (
        table(vec![with("p", "paged"), with("s", "static")], ""),
        book(),
    );
    let chosen = |size: usize| {
        let mut long = request(Some("m"));
        long.prompt_bytes = size;
        pick(&table, &long, &book, "round_robin").unwrap()
    };
    let names: String = [10, 100, 101, 5000].into_iter().map(chosen).collect();
    assert_eq!(names, "ppss");
}

#[test]
fn the_choice_says_why() {
    let now = Instant::now();
    let table = table(plain("ab"), "");
    let chosen = choose(
        &table,
        &request(Some("m")),
        &mut book().lock(),
        now,
        rules("round_robin"),
    );
    let choice = chosen.unwrap().unwrap();
    assert_eq!((choice.policy, choice.why), ("round_robin", "; its turn"));
}
