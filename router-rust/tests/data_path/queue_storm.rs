//! Many threads at one waiting room.

use std::sync::Arc;

use infini_router::router::queue::{Answer, Asked};

use crate::queue::{House, engine, told};

/// Requests of several threads come, wait, leave and end: limits hold, and nobody is lost.
#[test]
fn a_storm_of_threads_passes_no_limit_and_loses_nobody() {
    let house = Arc::new(House::new(&[engine("a", "mn", 3), engine("b", "n", 2)]));
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let house = Arc::clone(&house);
            scope.spawn(move || storm(&house, seed));
        }
    });
    house.room.look_again(house.now);
    assert_eq!((house.book.in_flight(), house.waiting()), (0, 0));
}

fn storm(house: &House, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut tickets, mut running) = (Vec::new(), Vec::new());
    for _ in 0..3000 {
        match house.ask_for(random.choice([Some("m"), Some("n"), None]).unwrap(), 1, &[]) {
            Asked::Now(Answer::Place(place)) => running.push(place.in_flight),
            Asked::Later(ticket) => tickets.push(ticket),
            Asked::Now(_) => {}
        }
        if !tickets.is_empty() && random.bool() {
            let mut ticket = tickets.swap_remove(random.usize(..tickets.len()));
            match told(&mut ticket) {
                Some(Answer::Place(place)) => running.push(place.in_flight),
                _ if random.bool() => tickets.push(ticket),
                _ => {} // it leaves
            }
        }
        if !running.is_empty() && random.bool() {
            running.swap_remove(random.usize(..running.len()));
        }
        for (name, limit) in [("a", 3), ("b", 2)] {
            assert!(house.book.lock().in_flight_of(name) <= limit);
        }
    }
}
