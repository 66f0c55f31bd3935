//! Which engine serves a request: candidates first, then a policy. No network, clock or lock.

use crate::router::table::ServiceTable;
use crate::utils::errors::{Code, RouterError};

/// Why no engine can serve `model`.
pub fn nobody_up(table: &ServiceTable, model: Option<&str>) -> RouterError {
    let Some(model) = model else {
        return RouterError::new(Code::NoHealthyEngine, "No OpenAI API services available");
    };
    if !table.known || table.named.contains(model) {
        let text = format!("No healthy services available for model '{model}'");
        return RouterError::new(Code::NoHealthyEngine, text).with_param("model");
    }
    let text = format!("The model '{model}' does not exist; GET /v1/models lists what is served");
    RouterError::new(Code::ModelNotFound, text).with_param("model")
}
