//! The rules of leaving: time is passed in, nothing waits.

use std::collections::HashSet;
use std::time::Duration;

use infini_router::registry::membership::Membership;
use infini_router::router::table::{Service, Services};
use serde_json::json;
use tokio::time::Instant;

use crate::rig::{engine, listed, metadata, names, with};

const GRACE: u64 = 60;

/// A membership and the moment at which it began.
struct Members(Membership, Instant);

impl Members {
    /// These engines, all healthy at second 0.
    fn new(services: &Services) -> Self {
        let mut members = Self(Membership::new(Duration::from_secs(GRACE)), Instant::now());
        members.healthy(services, 0);
        members
    }

    fn healthy(&mut self, services: &Services, second: u64) {
        self.0
            .healthy(services, self.1 + Duration::from_secs(second));
    }

    fn expire(&mut self, second: u64, down: &[&str]) -> Vec<String> {
        let down: HashSet<String> = down.iter().map(|&name| name.to_owned()).collect();
        self.0.expire(self.1 + Duration::from_secs(second), &down)
    }

    fn names(&self) -> Vec<&str> {
        names(self.0.services())
    }

    fn status(&self, name: &str) -> &str {
        &self
            .0
            .services()
            .iter()
            .find(|service| service.name == name)
            .unwrap()
            .status
    }
}

fn of(letters: &str) -> Services {
    listed(
        letters
            .chars()
            .zip(9000..)
            .map(|(letter, port)| engine(&letter.to_string(), port, &[])),
    )
}

fn status(letter: &str, status: &str) -> Service {
    let port = 9000 + u16::from(letter.as_bytes()[0] - b'a');
    Service {
        status: status.to_owned(),
        ..engine(letter, port, &[])
    }
}

#[test]
fn a_service_that_is_gone_is_kept_for_the_grace_period_and_then_removed() {
    let mut four = Members::new(&of("abcd"));
    four.healthy(&of("abc"), 100);
    four.0.listed(&of("abc"));
    assert!(four.expire(159, &[]).is_empty());
    assert_eq!(four.names(), ["a", "b", "c", "d"]);
    assert_eq!(four.expire(160, &[]), ["d"]);
    assert_eq!(four.names(), ["a", "b", "c"]);
}

#[test]
fn grace_starts_anew_when_a_service_comes_back() {
    let mut four = Members::new(&of("abcd"));
    four.healthy(&of("abc"), 0);
    four.healthy(&of("abcd"), 50);
    four.healthy(&of("abc"), 55);
    assert!(four.expire(60, &[]).is_empty());
    assert_eq!(four.expire(115, &[]), ["d"]);
}

#[test]
fn an_empty_answer_removes_only_engines_whose_probes_fail() {
    let mut four = Members::new(&of("abcd"));
    four.healthy(&of(""), 0);
    four.0.listed(&of(""));
    assert!(four.expire(10_000, &[]).is_empty());
    assert_eq!(four.expire(10_000, &["b"]), ["b"]);
    assert_eq!(four.names(), ["a", "c", "d"]);
}

#[test]
fn losing_more_than_half_at_once_counts_as_a_fault_of_the_registry() {
    let mut four = Members::new(&of("abcd"));
    four.healthy(&of("a"), 0);
    assert!(four.expire(10_000, &[]).is_empty());
}

#[test]
fn losing_half_at_once_is_believed() {
    let mut four = Members::new(&of("abcd"));
    four.healthy(&of("ab"), 0);
    assert_eq!(four.expire(GRACE, &[]), ["c", "d"]);
}

#[test]
fn the_only_engine_is_not_removed_while_its_probe_is_good() {
    let mut one = Members::new(&of("a"));
    one.healthy(&of(""), 1);
    assert!(one.expire(10_000, &[]).is_empty());
    assert_eq!(one.expire(10_000, &["a"]), ["a"]);
}

#[test]
fn engines_that_register_again_one_by_one_leave_the_others_guarded() {
    let mut four = Members::new(&of("abcd"));
    four.healthy(&of(""), 0);
    for (present, second) in ["a", "ab", "abc"].iter().zip(1..) {
        four.healthy(&of(present), second);
    }
    assert!(four.expire(10_000, &[]).is_empty());
    assert_eq!(four.names(), ["a", "b", "c", "d"]);
}

#[test]
fn dead_engines_of_a_lost_list_leave_by_a_third_per_answer() {
    let mut ten = Members::new(&of("abcdefghij"));
    ten.healthy(&of(""), 0);
    let down = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let mut left = Vec::new();
    while !ten.names().is_empty() {
        left.push(ten.expire(GRACE, &down).len());
    }
    assert_eq!(left, [3, 2, 1, 1, 1, 1, 1]);
}

#[test]
fn a_babysitter_that_is_gone_leaves_after_grace_though_it_has_no_probe() {
    let sitter = Service {
        metadata: metadata(json!({ "type": "InfiniLM" })),
        ..engine("s", 9001, &[])
    };
    let mut two = Members::new(&listed([engine("a", 9000, &[]), sitter]));
    two.healthy(&of(""), 0);
    assert_eq!(two.expire(GRACE, &[]), ["s"]);
}

#[test]
fn a_draining_engine_stops_being_routable_at_once_and_stays_named() {
    let mut four = Members::new(&of("abcd"));
    let mut full = of("abc");
    full.push(status("d", "draining").into());
    four.healthy(&of("abc"), 0);
    four.0.listed(&full);
    assert!(four.expire(0, &[]).is_empty());
    assert_eq!(
        (four.status("c"), four.status("d")),
        ("running", "draining")
    );
    four.0.listed(&full);
    assert!(four.expire(10_000, &[]).is_empty());
    four.0.listed(&of("abc"));
    assert_eq!(four.expire(10_001, &[]), ["d"]);
}

#[test]
fn draining_all_engines_is_no_fault_of_the_registry() {
    let mut one = Members::new(&of("a"));
    one.healthy(&of(""), 1);
    one.0.listed(&listed([status("a", "draining")]));
    one.0.listed(&of(""));
    assert_eq!(one.expire(1 + GRACE, &[]), ["a"]);
}

#[test]
fn an_engine_listed_as_unhealthy_serves_through_the_grace_period_and_stays_named() {
    let mut four = Members::new(&of("abcd"));
    four.healthy(&of("abc"), 0);
    four.0.listed(&of("abcd"));
    four.expire(GRACE - 1, &[]);
    assert_eq!(four.status("d"), "running");
    assert!(four.expire(GRACE, &[]).is_empty());
    assert_eq!(four.status("d"), "unhealthy");
    four.healthy(&of("abcd"), GRACE + 1);
    assert_eq!(four.status("d"), "running");
}

#[test]
fn services_marked_static_are_never_removed() {
    let mut all = of("abc");
    all.push(with(engine("fixed", 9009, &[]), "static", true).into());
    let mut members = Members::new(&all);
    members.healthy(&of("abc"), 0);
    assert!(members.expire(1_000_000, &["fixed"]).is_empty());
}

#[test]
fn a_service_that_moved_is_replaced_in_its_place() {
    let mut four = Members::new(&of("abcd"));
    let mut moved = listed([engine("b", 9500, &[])]);
    moved.extend(of("abcd").into_iter().filter(|service| service.name != "b"));
    four.healthy(&moved, 1);
    assert_eq!(four.names(), ["a", "b", "c", "d"]);
    assert_eq!(four.0.services()[1].port, 9500);
}

#[test]
fn a_restored_list_is_judged_by_the_first_answer() {
    let mut members = Members::new(&of(""));
    members.0.restore(of("abc"));
    members.healthy(&of("ab"), 5);
    assert_eq!(members.expire(5 + GRACE, &[]), ["c"]);
}
