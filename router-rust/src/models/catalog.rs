//! The merged model list of all healthy engines.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::router::table::{ServiceTable, TableStore};
use crate::utils::checks::number;
use crate::utils::json;

/// Where an engine names none.
pub const OWNER: &str = "infinilm";

/// `OpenAI`'s model list as bytes, made anew only when the table changed.
pub struct ModelCatalog {
    store: Arc<TableStore>,
    merged: Mutex<Arc<Merged>>,
}

/// The list of one table and the object of each model in it.
struct Merged {
    table: Arc<ServiceTable>,
    list: Bytes,
    objects: HashMap<String, Bytes>,
}

impl ModelCatalog {
    /// The catalog of what the store holds.
    pub fn new(store: Arc<TableStore>) -> Self {
        let merged = Mutex::new(Arc::new(Merged::of(store.current())));
        Self { store, merged }
    }

    /// The body of `GET /v1/models`: the union over healthy engines, the first one wins.
    pub fn list(&self) -> Bytes {
        self.merged().list.clone()
    }

    /// The object of one model, None when no healthy engine serves it.
    pub fn get(&self, model_id: &str) -> Option<Bytes> {
        self.merged().objects.get(model_id).cloned()
    }

    fn merged(&self) -> Arc<Merged> {
        let table = self.store.current();
        let mut merged = self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&merged.table, &table) {
            *merged = Arc::new(Merged::of(table));
        }
        Arc::clone(&merged)
    }
}

impl Merged {
    fn of(table: Arc<ServiceTable>) -> Self {
        let models = merged_models(&table);
        let bodies: Vec<&str> = models.iter().map(|(_, body)| body.as_str()).collect();
        let list = format!("{{\"object\":\"list\",\"data\":[{}]}}", bodies.join(","));
        Self {
            table,
            list: list.into(),
            objects: models
                .into_iter()
                .map(|(model, body)| (model, body.into()))
                .collect(),
        }
    }
}

/// Each model's id and its object as JSON, in the order of engines and of their lists.
pub fn merged_models(table: &ServiceTable) -> Vec<(String, String)> {
    let mut merged: Vec<(String, String)> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let nothing = Map::new();
    for engine in &table.healthy_engines {
        let objects = engine.models_list.iter().rev();
        let known: HashMap<_, _> = objects
            .filter_map(|found| Some((found.get("id")?.as_str()?, found)))
            .collect();
        for model in engine
            .models
            .iter()
            .filter(|model| seen.insert(model.as_str()))
        {
            let complete = complete_model(model, known.get(model.as_str()).unwrap_or(&&nothing));
            merged.push((model.clone(), json::compact(&Value::Object(complete))));
        }
    }
    merged
}

/// The object with the four fields that clients rely on; all further fields pass unchanged.
pub fn complete_model(model: &str, known: &Map<String, Value>) -> Map<String, Value> {
    let owner = known
        .get("owned_by")
        .and_then(Value::as_str)
        .filter(|owner| !owner.is_empty());
    let mut complete = known.clone();
    complete.insert("id".to_owned(), Value::from(model));
    complete.insert("object".to_owned(), Value::from("model"));
    complete.insert(
        "created".to_owned(),
        known.get("created").map_or(Value::from(0), whole),
    );
    complete.insert("owned_by".to_owned(), Value::from(owner.unwrap_or(OWNER)));
    complete
}

/// A whole number: some engines send a float or none.
fn whole(created: &Value) -> Value {
    let Some(value) = number(created) else {
        return Value::from(0);
    };
    if json::is_whole(&created.to_string()) {
        return created.clone();
    }
    json::whole_number(&format!("{:.0}", value.trunc()))
}
