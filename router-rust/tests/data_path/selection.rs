//! Who is chosen: candidates first, then the policy.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use infini_router::router::engine::{Limits, Outcome};
use infini_router::router::load::{InFlight, LoadBook};
use infini_router::router::policies::{Policy, rendezvous};
use infini_router::router::selection::{Nobody, Request, Rules, choose};
use infini_router::router::table::{Service, ServiceTable};
use infini_router::utils::errors::Code;
use serde_json::json;
use tokio::time::Instant;

fn engine(name: &str, weight: f64) -> Service {
    Service {
        name: name.to_owned(),
        host: "127.0.0.1".to_owned(),
        port: 1,
        weight,
        models: vec!["m".to_owned()],
        metadata: json!({"type": "openai-api"}).as_object().unwrap().clone(),
        ..Service::default()
    }
}

fn plain(names: &str) -> Vec<Service> {
    names
        .chars()
        .map(|name| engine(&name.to_string(), 1.0))
        .collect()
}

fn table(services: Vec<Service>, down: &str) -> ServiceTable {
    let named = Arc::new(HashSet::from(["m".to_owned()]));
    let down = down.chars().map(String::from).collect();
    ServiceTable::new(
        services.into_iter().map(Arc::new).collect(),
        true,
        down,
        named,
    )
}

fn request(model: Option<&str>) -> Request {
    Request {
        model: model.map(str::to_owned),
        client: "10.0.0.1".to_owned(),
        ..Request::default()
    }
}

fn rules(policy: &str) -> Rules {
    Rules {
        policy: Policy::named(policy),
        cache_type_threshold: 100,
        last_choice: false,
    }
}

fn book() -> Arc<LoadBook> {
    Arc::new(LoadBook::new(Limits::default(), || 0.5))
}

fn pick(table: &ServiceTable, request: &Request, book: &LoadBook, policy: &str) -> Option<String> {
    let chosen = choose(
        table,
        request,
        &mut book.lock(),
        Instant::now(),
        rules(policy),
    );
    chosen
        .unwrap()
        .ok()
        .map(|choice| choice.service.name.clone())
}

/// The names chosen by so many requests that end at once.
fn picks(table: &ServiceTable, count: usize, policy: &str, book: &LoadBook) -> String {
    (0..count)
        .map(|_| pick(table, &request(Some("m")), book, policy).unwrap())
        .collect()
}

fn turns(table: &ServiceTable, count: usize) -> String {
    picks(table, count, "round_robin", &book())
}

fn fail(book: &Arc<LoadBook>, service: &Arc<Service>, times: usize) {
    for _ in 0..times {
        let now = Instant::now();
        let guard = book.begin(&mut book.lock(), service, now, 0);
        guard.release(Outcome::EngineFault, now);
    }
}

fn letters(text: &str) -> HashSet<char> {
    text.chars().collect()
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
fn when_probes_leave_less_than_half_the_others_are_tried_too() {
    assert_eq!(turns(&table(plain("abcd"), "cd"), 4), "abab");
    assert_eq!(turns(&table(plain("abcd"), "bcd"), 8), "abcd".repeat(2));
    assert_eq!(turns(&table(plain("a"), "a"), 2), "aa");
}

#[test]
fn least_loaded_counts_by_weight() {
    let (table, book) = (table(vec![engine("a", 3.0), engine("b", 1.0)], ""), book());
    let mut guards = Vec::new();
    let mut names = BTreeMap::<String, u32>::new();
    for _ in 0..40 {
        let name = pick(&table, &request(Some("m")), &book, "least_loaded").unwrap();
        let service = table.services.iter().find(|s| s.name == name).unwrap();
        guards.push(book.begin(&mut book.lock(), service, Instant::now(), 0));
        *names.entry(name).or_default() += 1;
    }
    assert_eq!(
        names,
        BTreeMap::from([("a".to_owned(), 30), ("b".to_owned(), 10)])
    );
}

/// A request that took so many seconds to its first byte.
fn answer(book: &Arc<LoadBook>, service: &Arc<Service>, seconds: f64, now: Instant) {
    let begun = now.checked_sub(Duration::from_secs_f64(seconds)).unwrap();
    let mut guard = book.begin(&mut book.lock(), service, begun, 0);
    guard.answered(200, None, false, now);
    guard.release(Outcome::Ok, now);
}

/// Every name that power of two ever chose of two engines.
fn preferred(table: &ServiceTable, book: &LoadBook) -> String {
    let names = picks(table, 20, "power_of_two", book);
    ["a", "b"]
        .into_iter()
        .filter(|&name| names.contains(name))
        .collect()
}

/// So many requests that stay at an engine.
fn hold(book: &Arc<LoadBook>, service: &Arc<Service>, count: usize) -> Vec<InFlight> {
    let begin = |_| book.begin(&mut book.lock(), service, Instant::now(), 0);
    (0..count).map(begin).collect()
}

#[test]
fn power_of_two_weighs_requests_by_the_time_that_they_take() {
    let (table, book) = (table(plain("ab"), ""), book());
    let (slow, fast) = (&table.services[0], &table.services[1]);
    assert_eq!(preferred(&table, &book), "ab"); // nothing is known, so nothing speaks for either
    let _one = hold(&book, slow, 1);
    assert_eq!(preferred(&table, &book), "b");
    let _other = hold(&book, fast, 1);
    answer(&book, slow, 1.0, Instant::now());
    assert_eq!(preferred(&table, &book), "ab"); // of one of them nothing is known yet
    answer(&book, fast, 0.1, Instant::now());
    let _more = hold(&book, fast, 15); // (16 + 1) x 0.1 < (1 + 1) x 1
    assert_eq!(preferred(&table, &book), "b");
    let _most = hold(&book, fast, 6);
    assert_eq!(preferred(&table, &book), "a");
}

#[test]
fn power_of_two_divides_by_weight() {
    let (table, book) = (table(vec![engine("a", 3.0), engine("b", 1.0)], ""), book());
    let now = Instant::now();
    for service in &table.services {
        answer(&book, service, 0.5, now);
    }
    let mut held = Vec::new();
    for _ in 0..2 {
        assert_eq!(preferred(&table, &book), "a");
        held.extend(hold(&book, &table.services[0], 1));
    }
    held.extend(hold(&book, &table.services[0], 1));
    assert_eq!(preferred(&table, &book), "b");
}

#[test]
fn an_engine_that_fails_fast_attracts_nothing() {
    let (table, book) = (table(plain("ab"), ""), book());
    answer(&book, &table.services[0], 0.5, Instant::now());
    fail(&book, &table.services[1], 1);
    let _held = hold(&book, &table.services[0], 8); // (8 + 1) x 0.5 < 5
    assert_eq!(preferred(&table, &book), "a");
}

/// Shares of 4 engines, of which the first has just come: in its first 10 s, and after them.
fn warmed(policy: &str) -> [f64; 2] {
    let (all, book) = (table(plain("abcd"), ""), book());
    let others = ServiceTable::new(
        all.services[1..].to_vec(),
        true,
        HashSet::new(),
        Arc::default(),
    );
    let came = Instant::now() + Duration::from_secs(100);
    book.follow(&others, &all, came);
    [0, 10].map(|start| {
        let mut served = 0;
        for number in 0..400_u64 {
            let now = came + Duration::from_millis(1000 * start + 25 * number);
            let chosen = choose(
                &all,
                &request(Some("m")),
                &mut book.lock(),
                now,
                rules(policy),
            );
            let choice = chosen.unwrap().unwrap();
            served += u32::from(choice.service.name == "a");
            answer(&book, &choice.service, 0.1, now);
        }
        f64::from(served) / 100.0
    })
}

#[test]
fn an_engine_that_comes_takes_up_its_share_slowly() {
    for policy in ["round_robin", "least_loaded", "power_of_two", "random"] {
        let [first, then] = warmed(policy);
        assert!((0.1..=0.5).contains(&first), "{policy}: {first}");
        assert!(then >= 0.6, "{policy}: {then}");
    }
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
fn a_key_stays_with_its_engine_and_few_move_when_one_leaves() {
    let services: Vec<_> = (0..5)
        .map(|n| Arc::new(engine(&format!("engine-{n}"), 1.0)))
        .collect();
    let book = book();
    let book = book.lock();
    let mut counts = BTreeMap::<String, usize>::new();
    for number in 0..2000 {
        let key = format!("session-{number}").into_bytes();
        let before = rendezvous(&key, &services, &book).name.clone();
        let left = &rendezvous(&key, &services[1..], &book).name;
        assert!(before == *left || before == "engine-0");
        *counts.entry(before).or_default() += 1;
    }
    assert!(counts.values().all(|&count| count < 500), "{counts:?}");
}

#[test]
fn both_routers_send_a_key_to_the_same_engine() {
    // Computed by the Python router's `rendezvous`.
    let services: Vec<_> = (0..5)
        .map(|n| Arc::new(engine(&format!("engine-{n}"), 1.0)))
        .collect();
    let book = book();
    let chosen: Vec<_> = (0..8)
        .map(|n| {
            rendezvous(format!("session-{n}").as_bytes(), &services, &book.lock())
                .name
                .clone()
        })
        .map(|name| name.replace("engine-", ""))
        .collect();
    assert_eq!(chosen.concat(), "24421224");
}

#[test]
fn one_hot_key_does_not_pile_up() {
    let table = table(plain("abcd"), "");
    let book = book();
    let mut guards = Vec::new();
    for _ in 0..100 {
        let mut locked = book.lock();
        let service = Arc::clone(rendezvous(b"hot", &table.services, &locked));
        guards.push(book.begin(&mut locked, &service, Instant::now(), 0));
    }
    let most = table
        .services
        .iter()
        .map(|s| book.lock().in_flight_of(&s.name))
        .max();
    assert!(most.unwrap() <= 32);
}

#[test]
fn hash_policies_are_sticky() {
    for policy in ["consistent_hash", "ip_hash"] {
        let names = picks(&table(plain("abcd"), ""), 20, policy, &book());
        assert_eq!(letters(&names).len(), 1);
    }
}

#[test]
fn random_and_power_of_two_reach_everyone() {
    for policy in ["random", "power_of_two"] {
        let names = picks(&table(plain("abcd"), ""), 400, policy, &book());
        assert_eq!(letters(&names), letters("abcd"));
    }
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
