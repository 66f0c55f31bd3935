use infini_router::utils::json::{Style, float_text, general, quoted, write};
use infini_router::utils::json_parse::{Rules, parse};
use serde_json::json;

#[test]
fn numbers_are_spelt_as_python_does() {
    let shown = [
        5.0,
        0.1,
        -0.0,
        1e15,
        1e16,
        1.5e300,
        1e-4,
        1e-5,
        f64::INFINITY,
        f64::NAN,
    ];
    let expected = [
        "5.0",
        "0.1",
        "-0.0",
        "1000000000000000.0",
        "1e+16",
        "1.5e+300",
        "0.0001",
        "1e-05",
    ];
    let texts: Vec<_> = shown.into_iter().map(float_text).collect();
    assert_eq!(texts[..8], expected);
    assert_eq!(texts[8..], ["Infinity", "NaN"]);
}

#[test]
fn short_numbers_have_six_digits_at_most() {
    let shown = [
        0.01,
        86400.0,
        1e6,
        4.981_321,
        30.0,
        0.0,
        1e-5,
        123_456.7,
        1_234_567.0,
    ];
    let expected = [
        "0.01",
        "86400",
        "1e+06",
        "4.98132",
        "30",
        "0",
        "1e-05",
        "123457",
        "1.23457e+06",
    ];
    assert_eq!(shown.map(general), expected);
}

#[test]
fn values_are_written_in_ascii_in_three_styles() {
    let value = json!({ "b": [1, 2.5], "a": { "é": "\u{1f600}\n" }, "e": [], "o": {} });
    assert_eq!(
        write(&value, Style::Spaced),
        r#"{"b": [1, 2.5], "a": {"\u00e9": "\ud83d\ude00\n"}, "e": [], "o": {}}"#
    );
    assert_eq!(
        write(&json!([1, { "a": null }]), Style::Compact),
        r#"[1,{"a":null}]"#
    );
    assert_eq!(
        write(&json!({ "b": [1, 2], "a": {}, "c": [] }), Style::Indented),
        "{\n  \"a\": {},\n  \"b\": [\n    1,\n    2\n  ],\n  \"c\": []\n}"
    );
}

#[test]
fn digits_and_the_order_of_keys_survive() {
    let text = r#"{"z": 123456789012345678901234567890, "a": 1.5, "z2": -0, "f": 1e2}"#;
    let written = write(&parse(text, Rules::Exact).unwrap(), Style::Spaced);
    let expected = r#"{"z": 123456789012345678901234567890, "a": 1.5, "z2": 0, "f": 100.0}"#;
    assert_eq!(written, expected);
}

#[test]
fn faults_are_told_in_the_words_of_python_with_their_place() {
    let fault = |text: &str| parse(text, Rules::Exact).unwrap_err().to_string();
    for (text, expected) in [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        (
            "{,}",
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (
            "{\"a\" 1}",
            "Expecting ':' delimiter: line 1 column 6 (char 5)",
        ),
        ("[1 2]", "Expecting ',' delimiter: line 1 column 4 (char 3)"),
        ("[1,]", "Expecting value: line 1 column 4 (char 3)"),
        ("{\n \"é\": x}", "Expecting value: line 2 column 7 (char 8)"),
        ("01", "Extra data: line 1 column 2 (char 1)"),
        (
            "\"a",
            "Unterminated string starting at: line 1 column 1 (char 0)",
        ),
        ("\"\\x\"", "Invalid \\escape: line 1 column 2 (char 1)"),
        (
            "\"a\tb\"",
            "Invalid control character at: line 1 column 3 (char 2)",
        ),
        (
            "{\"a\": 1, \"a\": 2}",
            "key 'a' stands twice in one object, keep one of them",
        ),
        ("[NaN]", "NaN is no JSON number, give a finite one"),
    ] {
        assert_eq!(fault(text), expected, "{text}");
    }
    assert!(fault(&"[".repeat(100_000)).contains("nested too deeply"));
}

#[test]
fn answers_of_others_are_read_with_patience() {
    let text = r#"[NaN, Infinity, 1e999, 1.5, {"a": 1, "b": 2, "a": 3}]"#;
    let read = parse(text, Rules::Lenient).unwrap();
    assert_eq!(
        write(&read, Style::Compact),
        r#"[null,null,null,1.5,{"a":3,"b":2}]"#
    );
}

#[test]
fn texts_are_quoted_so_that_they_forge_no_line() {
    assert_eq!(quoted("it's"), "\"it's\"");
    assert_eq!(quoted("a'b\"c"), "'a\\'b\"c'");
    assert_eq!(quoted("x\r\ny\u{7f}\u{2028}"), "'x\\r\\ny\\x7f\\u2028'");
}
