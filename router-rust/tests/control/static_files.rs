use infini_router::router::table::Service;
use infini_router::utils::checks::nginx_seconds;
use serde_json::{Value, json};

use crate::loading::{close, faults, load, shipped};
use crate::rig::Folder;

#[test]
fn static_services_come_in_three_shapes_and_replace_those_of_the_config() {
    let folder = Folder::new();
    let config = shipped(&folder);
    let entries =
        json!([{ "host": "127.0.0.1", "port": 8100, "metadata": { "models": ["m", "n"] } }]);
    for content in [
        entries.clone(),
        json!({ "services": entries }),
        json!({ "static_services": { "services": entries } }),
        json!({ "router": { "anything": 1 }, "static_services": { "services": entries } }),
    ] {
        let file = folder.file("s.json", &content.to_string());
        let config = load(&["--config", &config, "--static-services", &file]);
        let [service] = config.static_services.as_slice() else {
            panic!("one")
        };
        assert_eq!(service.name, "127.0.0.1:8100");
        assert_eq!(service.models, ["m", "n"]);
    }
}

/// The one service of a static file with this entry.
fn entry(changes: Value) -> Service {
    let mut entry = json!({ "host": "h", "port": 1 });
    let Value::Object(changes) = changes else {
        panic!("not an object")
    };
    entry.as_object_mut().unwrap().extend(changes);
    let folder = Folder::new();
    let file = folder.file("s.json", &json!([entry]).to_string());
    let config = load(&["--static-services", &file]);
    Service::clone(&config.static_services[0])
}

#[test]
fn models_of_a_static_service_come_from_its_metadata() {
    for (metadata, models, objects) in [
        (json!({ "model": "one" }), vec!["one"], 0),
        (
            json!({ "models": ["a", "a", 7, ""], "model": "one" }),
            vec!["a"],
            0,
        ),
        (
            json!({ "models_list": [{ "id": "x", "n": 1 }, { "id": 3 }, "y"] }),
            vec!["x"],
            1,
        ),
        (
            json!({ "models": ["a"], "models_list": [{ "id": "a" }, { "id": "b" }] }),
            vec!["a"],
            2,
        ),
        (json!({}), vec![], 0),
    ] {
        let service = entry(json!({ "metadata": metadata }));
        assert_eq!(
            (service.models_list.len(), service.models),
            (objects, models.iter().map(ToString::to_string).collect())
        );
    }
}

#[test]
fn nginx_words_of_a_static_service_are_read() {
    let service = entry(json!({ "max_fails": 0, "fail_timeout": "1m", "backup": true }));
    assert_eq!((service.max_fails, service.backup), (Some(0), true));
    assert!(close(service.fail_timeout.unwrap(), 60.0));
    assert!(!entry(json!({ "metadata": { "type": "InfiniLM" } })).is_engine());
}

#[test]
fn times_may_be_written_as_nginx_does() {
    for (text, expected) in [
        (json!("30s"), 30.0),
        (json!("500ms"), 0.5),
        (json!("2"), 2.0),
        (json!(7), 7.0),
    ] {
        assert!(close(nginx_seconds(&text).unwrap(), expected), "{text}");
    }
    for text in [
        json!("0"),
        json!("s"),
        json!("-1s"),
        json!(true),
        json!(null),
        json!("1 day"),
    ] {
        assert!(
            nginx_seconds(&text).unwrap_err().0.contains("give seconds"),
            "{text}"
        );
    }
}

#[test]
fn names_that_stand_twice_or_break_headers_are_faults() {
    let folder = Folder::new();
    let content = r#"[{"host": "h", "port": 1, "name": "x"}, {"host": "h", "port": 2, "name": "x"},
        {"host": "h", "port": 3, "name": "a\r\nb"}]"#;
    let found = faults(&["--static-services", &folder.file("s.json", content)]);
    assert_eq!(found.len(), 2);
    assert!(
        found[0].contains("[1].name: \"x\": used twice"),
        "{found:?}"
    );
    assert!(found[1].contains("[2].name"), "{found:?}");
}
