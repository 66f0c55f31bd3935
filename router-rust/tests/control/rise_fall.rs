use infini_router::router::health::RiseFall;

/// `+` good, `-` bad, `!` conclusive -> after each result `U` up or `D` down.
fn verdicts(results: &str) -> String {
    let mut counter = RiseFall::new(3, 2);
    let mut judge = |result| {
        let before = counter.up;
        let changed = counter.count(result == '+', result == '!');
        assert_eq!(changed, counter.up != before);
        if counter.up { 'U' } else { 'D' }
    };
    results.chars().map(&mut judge).collect()
}

#[test]
fn three_bad_results_in_a_row_take_out_and_two_good_ones_bring_back() {
    assert_eq!(verdicts("+-+--+---"), "UUUUUUUUD");
    assert_eq!(verdicts("+---+-++"), "UUUDDDDU");
    assert_eq!(verdicts("-"), "D");
    assert_eq!(verdicts("-++"), "DDU");
    assert_eq!(verdicts("+!++"), "UDDU");
    assert_eq!(verdicts("+--!"), "UUUD");
    assert_eq!(verdicts("!!+"), "DDD");
    let flapping = format!("+{}", "-+".repeat(30));
    assert_eq!(verdicts(&flapping), "U".repeat(61));
}

#[test]
fn results_against_the_verdict_make_probes_come_faster() {
    let mut counter = RiseFall::new(3, 2);
    let mut after = |good| {
        counter.count(good, false);
        counter.changing()
    };
    let changing: Vec<_> = "+--+---+"
        .chars()
        .map(|result| after(result == '+'))
        .collect();
    assert_eq!(
        changing,
        [false, true, true, false, true, true, false, true]
    );
}
