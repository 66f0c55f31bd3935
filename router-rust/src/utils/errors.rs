//! The closed set of errors that the router makes, and their one way to HTTP.
//!
//! Every error has `OpenAI`'s shape, `{"error": {"message", "type", "param", "code"}}`, and its
//! code stands in the header `x-infinilm-error` too, so that it is told from an engine's own error.

use serde_json::{Value, json};

use crate::utils::json;

/// How requests end, beside codes, without an error of the router's: for log and counters.
///
/// The client left before its answer was complete.
pub const CLIENT_CLOSED: &str = "client_closed";
/// It took no bytes for too long.
pub const CLIENT_TIMEOUT: &str = "client_timeout";
/// The engine answered 5xx, which was passed on.
pub const ENGINE_ERROR: &str = "engine_error";

/// What the log says of ends that the client brought about.
pub fn client_end(code: &str) -> &'static str {
    if code == CLIENT_TIMEOUT {
        "the client took no bytes for too long"
    } else {
        "the client closed its connection"
    }
}

/// One code per kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    InvalidRequest,
    BodyTooLarge,
    Unauthorized,
    PathNotAllowed,
    ModelNotFound,
    NoHealthyEngine,
    Overloaded,
    QueueTimeout,
    ConnectFailed,
    UpstreamReset,
    UpstreamInvalid,
    FirstByteTimeout,
    IdleTimeout,
    Draining,
    LoopDetected,
    Internal,
}

impl Code {
    /// The code's text, HTTP status and `OpenAI` error type.
    const fn parts(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::InvalidRequest => ("invalid_request", 400, "invalid_request_error"),
            Self::BodyTooLarge => ("body_too_large", 413, "invalid_request_error"),
            Self::Unauthorized => ("unauthorized", 401, "authentication_error"),
            Self::PathNotAllowed => ("path_not_allowed", 404, "invalid_request_error"),
            Self::ModelNotFound => ("model_not_found", 404, "invalid_request_error"),
            Self::NoHealthyEngine => ("no_healthy_engine", 503, "service_unavailable_error"),
            Self::Overloaded => ("overloaded", 429, "rate_limit_error"),
            Self::QueueTimeout => ("queue_timeout", 503, "service_unavailable_error"),
            Self::ConnectFailed => ("connect_failed", 503, "service_unavailable_error"),
            Self::UpstreamReset => ("upstream_reset", 502, "upstream_error"),
            Self::UpstreamInvalid => ("upstream_invalid", 502, "upstream_error"),
            Self::FirstByteTimeout => ("first_byte_timeout", 504, "upstream_error"),
            Self::IdleTimeout => ("idle_timeout", 504, "upstream_error"),
            Self::Draining => ("draining", 503, "service_unavailable_error"),
            Self::LoopDetected => ("loop_detected", 508, "invalid_request_error"),
            Self::Internal => ("internal", 500, "internal_error"),
        }
    }

    /// The text that clients see.
    pub const fn text(self) -> &'static str {
        self.parts().0
    }

    /// The usual HTTP status.
    pub const fn status(self) -> u16 {
        self.parts().1
    }

    /// `OpenAI`'s word for errors of this kind.
    pub const fn kind(self) -> &'static str {
        self.parts().2
    }

    /// Seconds after which a client may try again; these conditions heal by themselves.
    pub const fn retry_after(self) -> Option<u32> {
        match self {
            Self::NoHealthyEngine => Some(5),
            Self::Overloaded | Self::QueueTimeout | Self::ConnectFailed | Self::Draining => Some(1),
            _ => None,
        }
    }
}

/// A failure with the text that the client may see.
///
/// `status` replaces the code's usual status where HTTP has a more exact one (408, 417, 431 ...).
/// `close` ends the client's connection after the answer: the request's end is not certain.
/// `retry_after` (seconds) is what is known better than the code's usual one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RouterError {
    pub code: Code,
    pub message: String,
    pub param: Option<&'static str>,
    pub status: Option<u16>,
    pub close: bool,
    pub retry_after: Option<u32>,
}

impl RouterError {
    /// An error with its code's usual status.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            param: None,
            status: None,
            close: false,
            retry_after: None,
        }
    }

    /// The same, blamed on one parameter of the request.
    #[must_use]
    pub fn with_param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    /// The same with a more exact status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// The same, ending the client's connection.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// The same, naming the seconds after which a client may try again.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The status of the answer.
    pub fn http_status(&self) -> u16 {
        self.status.unwrap_or(self.code.status())
    }

    /// The header fields that tell this error apart, as they stand on the wire.
    pub fn header_lines(&self) -> Vec<u8> {
        let code = self.code.text();
        let lines = match self.retry_after.or_else(|| self.code.retry_after()) {
            Some(seconds) => format!("x-infinilm-error: {code}\r\nretry-after: {seconds}\r\n"),
            None => format!("x-infinilm-error: {code}\r\n"),
        };
        lines.into_bytes()
    }

    /// The JSON object in `OpenAI`'s shape, compact, UTF-8.
    pub fn body(&self, request_id: Option<&str>) -> Vec<u8> {
        let mut error = json!({
            "message": self.message,
            "type": self.code.kind(),
            "param": self.param,
            "code": self.code.text(),
        });
        if let Some(id) = request_id {
            error["request_id"] = Value::from(id);
        }
        json::compact(&json!({ "error": error })).into_bytes()
    }

    /// The error as one server-sent event.
    pub fn event(&self, request_id: Option<&str>) -> Vec<u8> {
        let mut event = b"data: ".to_vec();
        event.extend_from_slice(&self.body(request_id));
        event.extend_from_slice(b"\n\n");
        event
    }
}
