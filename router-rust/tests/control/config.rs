use infini_router::config::{POLICIES, SETTINGS};
use infini_router::config_load::Command;
use infini_router::flags::help;
use serde_json::{Value, json};

use crate::loading::{close, command, fault, faults, load, load_with, proxy_timeouts, shipped};
use crate::rig::Folder;

#[test]
fn a_shipped_file_is_read_with_all_its_keys() {
    let folder = Folder::new();
    let config = load(&["--config", &shipped(&folder)]);
    assert_eq!((config.router_port, config.policy), (8123, "least_loaded"));
    assert_eq!(config.registry_urls, ["http://192.168.1.100:8081"]);
    assert_eq!(proxy_timeouts(&config), [300, 300, 300]);
    assert!(close(config.proxy_connect_timeout, 60.0));
    let [spare] = config.static_services.as_slice() else {
        panic!("one")
    };
    assert_eq!((spare.name.as_str(), spare.backup), ("spare", true));
    assert_eq!((spare.source.as_str(), spare.is_engine()), ("static", true));
    assert_eq!(spare.models, ["Qwen3-32B"]);
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let folder = Folder::new();
    let file = shipped(&folder);
    let config = load_with(&["--config", &file], &[("PROXY_TIMEOUT_SECONDS", "20")]);
    assert_eq!(proxy_timeouts(&config), [20, 20, 20]);
    let argv = [
        "--config",
        &file,
        "--proxy-timeout",
        "7",
        "--idle-timeout",
        "3",
    ];
    let config = load_with(&argv, &[("PROXY_TIMEOUT_SECONDS", "9")]);
    assert_eq!(proxy_timeouts(&config), [7, 7, 3]);
    assert_eq!(
        load(&["--config", &file, "--router-port", "9"]).router_port,
        9
    );
}

#[test]
fn an_explicit_timeout_of_the_file_wins_over_the_common_one_in_either_order() {
    let folder = Folder::new();
    for text in [
        r#""idle_timeout": 4, "proxy_timeout": 8"#,
        r#""proxy_timeout": 8, "idle_timeout": 4"#,
    ] {
        let file = folder.file("c.json", &format!(r#"{{"router": {{{text}}}}}"#));
        assert_eq!(proxy_timeouts(&load(&["--config", &file])), [8, 8, 4]);
    }
}

#[test]
fn variables_of_the_later_version_are_honoured_and_empty_ones_are_not_set() {
    let environ = [
        ("CACHE_TYPE_ROUTING_THRESHOLD", "1000"),
        ("PROXY_TIMEOUT_SECONDS", ""),
    ];
    let config = load_with(&[], &environ);
    assert_eq!(config.cache_type_routing_threshold, 1000);
    assert_eq!(proxy_timeouts(&config), [300, 600, 120]);
}

#[test]
fn eleven_faults_of_a_file_are_reported_at_once_with_file_key_value_and_remedy() {
    let folder = Folder::new();
    let content = json!({
        "router": {
            "port": 70000, "registry_url": "ftp://x", "load_balancing_method": "prefix_cost",
            "health_interval": "soon", "health_fall": 2.5, "colour": "red", "proxy_paths": ["v2"],
        },
        "static_services": { "services": [
            { "host": "a", "port": 0 }, { "host": "http://a", "port": 1, "wieght": 2 },
        ] },
        "extra": 1,
    });
    let file = folder.file("bad.json", &content.to_string());
    let found = faults(&["--config", &file]);
    assert_eq!(found.len(), 11, "{found:#?}");
    for expected in [
        "extra: 1: unknown key, use router and static_services",
        "router.colour: \"red\": unknown key, use one of ",
        "router.port: 70000: out of range, give a whole number from 0 to 65535",
        "router.registry_url: \"ftp://x\": not a URL of a registry, give",
        "router.load_balancing_method: \"prefix_cost\": not known, give one of round_robin, ",
        "router.health_interval: \"soon\": not a number, give seconds from 0.01 to 86400, such as",
        "router.health_fall: 2.5: not a whole number",
        "router.proxy_paths: [\"v2\"]: not a path prefix",
        "static_services.services[0].port: 0: out of range",
        "static_services.services[1].host: \"http://a\": not a host",
        "static_services.services[1].wieght: 2: unknown key, use one of name, host",
    ] {
        let expected = format!("{file}: {expected}");
        assert!(
            found.iter().any(|text| text.starts_with(&expected)),
            "{expected}"
        );
    }
}

#[test]
fn faults_of_flags_environment_and_files_come_together() {
    let folder = Folder::new();
    let file = folder.file("s.json", r#"[{"host": "a"}]"#);
    let argv = [
        "--router-port",
        "x",
        "--sync",
        "--static-services",
        &file,
        "--threads",
        "0",
    ];
    let found = command(&argv, &[("PROXY_TIMEOUT_SECONDS", "-1")]).unwrap_err();
    let place = format!("{file}: [0].port: missing: every service needs host and port");
    assert_eq!(
        found,
        [
            "flags: --sync: missing: unknown, see --help for the flags",
            "environment: PROXY_TIMEOUT_SECONDS: -1: out of range, give seconds from 0.01 to 86400",
            "flags: --router-port: \"x\": not a whole number, give one from 0 to 65535",
            "flags: --threads: 0: out of range, give a whole number from 1 to 1024",
            &place,
        ]
    );
}

#[test]
fn words_of_the_command_line_are_read_as_the_python_router_reads_them() {
    assert_eq!(
        load(&["--host=h", "--router-port=9", "--router-port", "8"]).router_port,
        8
    );
    assert!(fault(&["--check-config=1"]).starts_with("flags: missing: unexpected value '1'"));
    assert!(fault(&["--router-port", "-5"]).contains("--router-port: -5: out of range"));
    assert_eq!(faults(&["--x", "y", "--", "--host"]).len(), 4);
    assert_eq!(command(&["--x", "--help"], &[]), Ok(Command::Help));
    assert!(matches!(
        command(&["--check-config"], &[]),
        Ok(Command::Check(_))
    ));
    assert_eq!(load(&["--threads", "3"]).threads, 3);
}

#[test]
fn unknown_words_and_missing_values_are_told_together() {
    let argv = ["--config", "--sync", "5", "-z", "--host", "--router-port"];
    assert_eq!(
        faults(&argv),
        [
            "flags: --sync: missing: unknown, see --help for the flags",
            "flags: 5: missing: unknown, see --help for the flags",
            "flags: -z: missing: unknown, see --help for the flags",
            "flags: --config: missing: give a value, see --help",
            "flags: --host: missing: give a value, see --help",
            "flags: --router-port: missing: give a value, see --help",
        ]
    );
}

#[test]
fn help_names_every_flag_and_its_default() {
    let text = help();
    for setting in SETTINGS {
        let line = format!("{} <X>\n", setting.flag());
        assert!(text.contains(&line), "{}", setting.name);
    }
    assert!(
        text.contains("time between probes of an engine (default: 5.0)"),
        "{text}"
    );
    assert!(
        text.contains("address to listen on (default: 0.0.0.0)"),
        "{text}"
    );
}

#[test]
fn one_setting_under_two_keys_is_a_fault() {
    let folder = Folder::new();
    let file = folder.file("c.json", r#"{"router": {"port": 1, "router_port": 2}}"#);
    let expected =
        format!("{file}: router.router_port: 2: the same setting as port, keep one of them");
    assert_eq!(faults(&["--config", &file]), [expected]);
}

#[test]
fn files_of_another_shape_are_refused() {
    let folder = Folder::new();
    for (content, reason) in [
        (
            "{,}",
            "not JSON (Expecting property name enclosed in double quotes, line 1, column 2)",
        ),
        (
            r#"{"router": {"port": 1, "port": 2}}"#,
            "key 'port' stands twice",
        ),
        (
            r#"{"router": {"health_interval": NaN}}"#,
            "NaN is no JSON number",
        ),
        ("[]", "not an object"),
        (r#"{"router": []}"#, "not an object"),
        (r#"{"static_services": []}"#, "not an object"),
        (r#"{"static_services": {}}"#, "not a list"),
    ] {
        let file = folder.file("c.json", content);
        let fault = fault(&["--config", &file]);
        assert!(
            fault.starts_with(&file) && fault.contains(reason),
            "{fault}"
        );
    }
}

#[test]
fn a_missing_file_is_a_fault_of_its_own() {
    let found = faults(&[
        "--config",
        "/nowhere/a.json",
        "--static-services",
        "/nowhere//./b.json",
    ]);
    let reason = "missing: can't be read (No such file or directory), give a readable file";
    let expected = ["a", "b"].map(|name| format!("/nowhere/{name}.json: {reason}"));
    assert_eq!(found, expected);
}

#[test]
fn lists_are_separated_by_commas_in_text_and_may_be_lists_in_files() {
    let argv = [
        "--registry-url",
        "http://a:1/, http://b:2,http://a:1",
        "--trusted-proxies",
        "10.0.0.0/8,127.0.0.1",
        "--proxy-paths",
        "/v2/,/x",
        "--retry-on",
        "reset-before-headers",
    ];
    let config = load(&argv);
    assert_eq!(config.registry_urls, ["http://a:1", "http://b:2"]);
    let networks: Vec<_> = config
        .trusted_proxies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(networks, ["10.0.0.0/8", "127.0.0.1/32"]);
    assert_eq!(config.proxy_paths, ["/v2/", "/x"]);
    assert_eq!(config.retry_on, ["reset-before-headers"]);
    let folder = Folder::new();
    let content = r#"{"router": {"registry_urls": ["http://a:1", "http://b:2"]}}"#;
    let file = folder.file("c.json", content);
    assert_eq!(
        load(&["--config", &file]).registry_urls,
        config.registry_urls
    );
}

#[test]
fn what_is_no_registry_url_is_refused() {
    for url in [
        "a:1",
        "http://",
        "http://h:0",
        "http://h:99999",
        "http://u:p@h",
        "http://h/?q",
        "x y",
        "http://[::1",
        "http://[1.2.3.4]",
        "http://h:8a",
        "http://h/#f",
        "//h",
    ] {
        assert!(
            fault(&["--registry-url", url]).contains("http://10.0.0.1:18000"),
            "{url}"
        );
    }
    for url in ["http://[::1]:80", "HTTPS://h", "http://h:/x"] {
        assert_eq!(load(&["--registry-url", url]).registry_urls, [url]);
    }
}

#[test]
fn times_out_of_range_are_refused_and_fractions_accepted() {
    for text in ["0", "-1", "nan", "inf", "1e9", "five", ""] {
        let fault = fault(&["--health-interval", text]);
        assert!(fault.starts_with("flags: --health-interval: "), "{fault}");
    }
    assert!(close(
        load(&["--health-interval", "0.05"]).health_interval,
        0.05
    ));
}

#[test]
fn every_policy_has_a_name() {
    for policy in POLICIES {
        assert_eq!(load(&["--policy", policy]).policy, *policy);
    }
}

#[test]
fn the_key_of_engines_is_read_and_never_shown() {
    let folder = Folder::new();
    let file = folder.file("key", "sk-canary\n");
    let config = load(&["--engine-api-key-file", &file]);
    assert_eq!(
        config.engine_api_key.as_ref().unwrap().reveal(),
        "sk-canary"
    );
    assert!(!format!("{}{config:?}", config.to_json()).contains("canary"));
    for content in ["", "two words", "\u{e9}"] {
        let file = folder.file("bad", content);
        let reason = "holds no usable key, put one line of printable ASCII without blanks into it";
        let expected = format!("flags: --engine-api-key-file: \"{file}\": {reason}");
        assert_eq!(faults(&["--engine-api-key-file", &file]), [expected]);
    }
}

#[test]
fn the_state_folder_defaults_to_logs_but_not_for_a_port_that_changes() {
    let default = load(&[]).state_dir;
    assert!(default.is_none_or(|folder| folder.ends_with("logs")));
    for argv in [
        ["--router-port", "0"],
        ["--state-dir", "none"],
        ["--state-dir", ""],
    ] {
        assert_eq!(load(&argv).state_dir, None);
    }
    let folder = Folder::new();
    let fault = fault(&["--state-dir", &folder.file("f", "")]);
    assert!(fault.starts_with("flags: --state-dir: "), "{fault}");
}

#[test]
fn the_shown_configuration_read_again_is_the_same() {
    let folder = Folder::new();
    let file = shipped(&folder);
    let argv = [
        "--config",
        &file,
        "--trusted-proxies",
        "10.0.0.0/8",
        "--state-dir",
        "/s",
    ];
    let config = load(&argv);
    let mut shown: Value = serde_json::from_str(&config.to_json()).unwrap();
    let mut services = shown
        .as_object_mut()
        .unwrap()
        .remove("static_services")
        .unwrap();
    for service in services.as_array_mut().unwrap() {
        service
            .as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
    }
    let content = json!({ "router": shown, "static_services": { "services": services } });
    let again = folder.file("again.json", &content.to_string());
    assert_eq!(load(&["--config", &again]), config);
}

#[test]
fn seconds_are_shown_as_fractions_and_counts_as_whole_numbers() {
    let shown = load(&["--health-interval", "5"]).to_json();
    assert!(shown.contains("\"health_interval\": 5.0,"), "{shown}");
    assert!(shown.contains("\"health_fall\": 3,"), "{shown}");
}
