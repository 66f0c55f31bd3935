//! Services as a registry (and the saved list) writes them down -> `Service`, and back.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::router::table::Service;
use crate::utils::checks::{self, Checked, UnusableError};
use crate::utils::json::{self, Style, quoted};

/// Of one service; more is a broken answer, not an engine.
pub const MAX_MODELS: usize = 1000;
pub const MAX_DEPTH: usize = 32;
const MAX_ID: usize = 512;
const MAX_STATUS: usize = 40;
const MAX_QUOTED: usize = 80;

/// Model ids, and the full `OpenAI` objects where known.
pub type Models = (Vec<String>, Vec<Map<String, Value>>);

/// The id if it is one that requests can name, else None.
pub fn model_id(value: Option<&Value>) -> Option<String> {
    let id = checks::text(value?).ok()?;
    (id.chars().count() <= MAX_ID).then_some(id)
}

/// The objects of an `OpenAI` model list that have a usable id; at most `MAX_MODELS`.
pub fn model_objects(value: Option<&Value>) -> Vec<Map<String, Value>> {
    let items = value.and_then(Value::as_array).into_iter().flatten();
    let objects = items.filter_map(Value::as_object);
    let usable = objects.filter(|object| model_id(object.get("id")).is_some());
    usable.take(MAX_MODELS).cloned().collect()
}

/// The ids in their order, each once.
pub fn unique(ids: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    ids.into_iter()
        .filter(|id| seen.insert(id.clone()))
        .collect()
}

/// The models that metadata names.
///
/// Ids come from the first of `models` (list), `model` (text) and `models_list` (objects) that
/// names any.
pub fn declared_models(metadata: &Map<String, Value>) -> Models {
    let objects = model_objects(metadata.get("models_list"));
    let listed = metadata.get("models").and_then(Value::as_array);
    let sources: [Vec<Option<&Value>>; 3] = [
        listed.into_iter().flatten().map(Some).collect(),
        vec![metadata.get("model")],
        objects.iter().map(|object| object.get("id")).collect(),
    ];
    let found = sources
        .into_iter()
        .map(|source| unique(source.into_iter().filter_map(model_id)));
    let mut ids = found
        .into_iter()
        .find(|ids| !ids.is_empty())
        .unwrap_or_default();
    ids.truncate(MAX_MODELS);
    (ids, objects)
}

/// A service as the registry describes it.
///
/// It is an error that it can't be used; the text names the key.
pub fn service_from_registry(entry: &Value) -> Checked<Service> {
    let Value::Object(entry) = entry else {
        return Err(UnusableError(format!(
            "not an object: {}",
            shown(Some(entry))
        )));
    };
    let metadata = entry
        .get("metadata")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    if !metadata
        .values()
        .all(|value| is_shallow(value, MAX_DEPTH - 1))
    {
        let reason = format!("metadata: nested deeper than {MAX_DEPTH} levels");
        return Err(UnusableError(reason));
    }
    let (models, models_list) = declared_models(&metadata);
    let name = read(entry, "name", checks::service_name)?;
    let host = read(entry, "host", checks::host)?;
    let port = read(entry, "port", checks::port)?;
    let weight = entry.get("weight").and_then(checks::number);
    let status = entry
        .get("status")
        .and_then(Value::as_str)
        .filter(|word| !word.is_empty());
    Ok(Service {
        name,
        url: base_url(&host, port),
        host,
        port,
        weight: weight.map_or(1.0, |weight| weight.max(0.0)),
        models,
        models_list,
        metadata,
        status: status
            .unwrap_or("running")
            .chars()
            .take(MAX_STATUS)
            .collect(),
        ..Service::default()
    })
}

/// Whether it can be written as JSON again anywhere, without running out of stack.
fn is_shallow(value: &Value, levels: usize) -> bool {
    match value {
        Value::Object(map) => levels > 0 && map.values().all(|item| is_shallow(item, levels - 1)),
        Value::Array(items) => levels > 0 && items.iter().all(|item| is_shallow(item, levels - 1)),
        _ => true,
    }
}

fn read<T>(entry: &Map<String, Value>, key: &str, check: fn(&Value) -> Checked<T>) -> Checked<T> {
    let value = entry.get(key);
    check(value.unwrap_or(&Value::Null))
        .map_err(|error| UnusableError(format!("{key}: {}: {error}", shown(value))))
}

/// The start of a value, in quotes.
fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => "None".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => json::write(value, Style::Spaced),
    };
    quoted(&text.chars().take(MAX_QUOTED).collect::<String>())
}

/// `http://host:port`; what a registered `url` says beside that is not used for requests.
pub fn base_url(host: &str, port: u16) -> String {
    let address = Service {
        host: host.to_owned(),
        ..Service::default()
    };
    format!("http://{}", address.netloc(u32::from(port)))
}

/// The service in the registry's words, to be read again by `service_from_registry`.
pub fn registry_entry(service: &Service) -> Value {
    json!({
        "name": service.name,
        "host": service.host,
        "port": service.port,
        "url": service.url,
        "status": service.status,
        "weight": service.weight,
        "metadata": service.metadata,
    })
}
