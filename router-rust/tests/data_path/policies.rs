//! Whom a policy chooses of several candidates.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use infini_router::router::engine::Outcome;
use infini_router::router::load::LoadBook;
use infini_router::router::policies::rendezvous;
use infini_router::router::selection::choose;
use infini_router::router::table::{Service, ServiceTable};
use tokio::time::Instant;

use crate::rig::{book, engine, fail, hold, letters, pick, picks, plain, request, rules, table};

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
