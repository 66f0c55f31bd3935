//! Services of static files: the three shapes of the file, and each entry -> `Service`.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::config_load::unknown_keys;
use crate::registry::entries::{base_url, declared_models};
use crate::router::table::{ENGINE_TYPE, Service, Services, Source};
use crate::utils::checks::{self, Check as _, Checked, UnusableError};

/// Takes a fault: the key, its value (None when there is none), the reason and what to do.
pub type Report<'a> = Box<dyn FnMut(&str, Option<&Value>, String) + 'a>;

const LIST_HINT: &str = "not a list, give the services in square brackets";
const ENTRY_KEYS: &[&str] = &[
    "name",
    "host",
    "port",
    "weight",
    "metadata",
    "backup",
    "max_fails",
    "fail_timeout",
];

/// Read `[...]`, `{"services": [...]}` or a whole `router_config.json`.
pub fn services_of_file(content: &Value, report: &mut Report<'_>) -> Services {
    match content {
        Value::Array(_) => services(Some(content), "", report),
        Value::Object(map) => match map.get("static_services") {
            Some(section) => {
                for key in unknown_keys(map, &["router", "static_services"]) {
                    let reason = "unknown key, use router and static_services";
                    report(key, map.get(key), reason.to_owned());
                }
                services_of_section(section, report)
            }
            None => services_of_object(map, "", report),
        },
        _ => {
            let reason = "give [...], {\"services\": [...]} or a router_config.json";
            report("", Some(content), reason.to_owned());
            Vec::new()
        }
    }
}

/// Read the `static_services` of a `router_config.json`.
pub fn services_of_section(section: &Value, report: &mut Report<'_>) -> Services {
    if let Value::Object(map) = section {
        return services_of_object(map, "static_services.", report);
    }
    let reason = "not an object, give {\"services\": [...]}";
    report("static_services", Some(section), reason.to_owned());
    Vec::new()
}

fn services_of_object(
    section: &Map<String, Value>,
    prefix: &str,
    report: &mut Report<'_>,
) -> Services {
    for key in unknown_keys(section, &["services"]) {
        let reason = "unknown key, use services".to_owned();
        report(&format!("{prefix}{key}"), section.get(key), reason);
    }
    services(
        section.get("services"),
        &format!("{prefix}services"),
        report,
    )
}

fn services(entries: Option<&Value>, path: &str, report: &mut Report<'_>) -> Services {
    let Some(Value::Array(list)) = entries else {
        report(path, entries, LIST_HINT.to_owned());
        return Vec::new();
    };
    let mut found = Services::new();
    for (index, entry) in list.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match service(entry, &path, report) {
            Some(new) if found.iter().any(|old| old.name == new.name) => {
                let reason = "used twice, names must differ".to_owned();
                report(
                    &format!("{path}.name"),
                    Some(&Value::from(new.name)),
                    reason,
                );
            }
            Some(new) => found.push(Arc::new(new)),
            None => {}
        }
    }
    found
}

/// One entry; every fault goes to `report`, and then the result is None.
fn service(entry: &Value, path: &str, report: &mut Report<'_>) -> Option<Service> {
    let Value::Object(entry) = entry else {
        report(
            path,
            Some(entry),
            "not an object, give {name?, host, port, ...}".to_owned(),
        );
        return None;
    };
    let mut draft = Draft::default();
    let mut fine = true;
    let missing = ["host", "port"]
        .into_iter()
        .filter(|key| !entry.contains_key(*key));
    for key in entry.keys().map(String::as_str).chain(missing) {
        let value = entry.get(key);
        if let Err(UnusableError(reason)) = draft.read(key, value) {
            report(&format!("{path}.{key}"), value, reason);
            fine = false;
        }
    }
    fine.then(|| draft.build())
}

/// The checked values of one entry.
#[derive(Default)]
struct Draft {
    name: Option<String>,
    host: String,
    port: u16,
    weight: Option<f64>,
    metadata: Map<String, Value>,
    backup: Option<bool>,
    max_fails: Option<u32>,
    fail_timeout: Option<f64>,
}

impl Draft {
    fn read(&mut self, key: &str, value: Option<&Value>) -> Checked<()> {
        let Some(value) = value else {
            return Err(UnusableError(
                "every service needs host and port".to_owned(),
            ));
        };
        match key {
            "name" => self.name = Some(checks::service_name(value)?),
            "host" => self.host = checks::host(value)?,
            "port" => self.port = checks::port(value)?,
            "weight" => {
                self.weight = Some(checks::decimal(0.0, 1e6, "a weight").read(value)?);
            }
            "metadata" => self.metadata = object(value)?,
            "backup" => self.backup = Some(checks::boolean(value)?),
            "max_fails" => self.max_fails = Some(checks::whole(0, 1_000_000).read(value)?),
            "fail_timeout" => self.fail_timeout = Some(checks::nginx_seconds(value)?),
            _ => {
                let known = ENTRY_KEYS.join(", ");
                return Err(UnusableError(format!(
                    "unknown key, use one of {known}; others go into metadata"
                )));
            }
        }
        Ok(())
    }

    fn build(self) -> Service {
        let mut metadata = Map::new();
        metadata.insert("type".to_owned(), Value::from(ENGINE_TYPE));
        metadata.extend(self.metadata);
        let (models, models_list) = declared_models(&metadata);
        let mut service = Service {
            url: base_url(&self.host, self.port),
            weight: self.weight.unwrap_or(1.0),
            // Files of the earlier version say it in metadata.
            backup: self
                .backup
                .unwrap_or_else(|| metadata.get("backup") == Some(&Value::Bool(true))),
            host: self.host,
            port: self.port,
            models,
            models_list,
            metadata,
            source: Source::Static,
            max_fails: self.max_fails,
            fail_timeout: self.fail_timeout,
            ..Service::default()
        };
        service.name = self
            .name
            .unwrap_or_else(|| service.netloc(u32::from(service.port)));
        service
    }
}

fn object(value: &Value) -> Checked<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map.clone()),
        _ => Err(UnusableError(
            "not an object, give one in braces".to_owned(),
        )),
    }
}
