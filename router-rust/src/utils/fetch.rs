//! One GET for the control loops (registry, probes, model lists): limits, and one kind of failure.
//!
//! Each GET is a connection of its own: a kept connection to a service that has just died would
//! fail one probe too many, and a new one shows that the service still accepts.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::RouterConfig;
use crate::utils::files::reason_of;
use crate::utils::json;
use crate::utils::json_parse::{Rules, parse};
use crate::utils::resources::is_shortage;

/// How long one address of a name is tried while there is another one (one may lead nowhere).
const ADDRESS_PATIENCE: Duration = Duration::from_millis(250);

/// No usable answer; `refused` when nothing listens at the address, `late` after the limit,
/// `unasked` when the router could not ask for want of descriptors or the like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct FetchError {
    pub reason: String,
    pub refused: bool,
    pub late: bool,
    pub unasked: bool,
}

impl FetchError {
    /// A failure of no special kind.
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            refused: false,
            late: false,
            unasked: false,
        }
    }
}

impl From<hyper::Error> for FetchError {
    fn from(error: hyper::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub status: u16,
    pub body: Bytes,
}

/// What is asked: a GET of `url` within `timeout` seconds; the body may have `limit` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub url: &'a str,
    pub timeout: f64,
    pub limit: usize,
    pub authorization: Option<&'a str>,
}

/// The answer to `question`. Redirects are answers; proxies of the environment are not used.
pub async fn fetch(question: Question<'_>) -> Result<Fetched, FetchError> {
    let limit = Duration::from_secs_f64(question.timeout);
    let answer = timeout(limit, answer_of(question)).await;
    answer.unwrap_or_else(|_| {
        let seconds = json::general(question.timeout);
        Err(FetchError {
            late: true,
            ..FetchError::new(format!("no answer within {seconds} s"))
        })
    })
}

async fn answer_of(question: Question<'_>) -> Result<Fetched, FetchError> {
    let uri: Uri = question
        .url
        .parse()
        .map_err(|error| FetchError::new(format!("{}: {error}", question.url)))?;
    let stream = connect(&uri).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender
            .send_request(request(&uri, question.authorization)?)
            .await?;
        let status = response.status().as_u16();
        let body = body_of(response, question.limit).await?;
        Ok(Fetched { status, body })
    };
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
    tokio::select! {
        answer = &mut exchange => answer,
        // It ends when the peer is done; what came before that is still to be read.
        _ = &mut connection => exchange.await,
    }
}

async fn connect(uri: &Uri) -> Result<TcpStream, FetchError> {
    if uri.scheme_str() != Some("http") {
        return Err(FetchError::new(format!(
            "{uri}: not an http:// address, which it must be"
        )));
    }
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = tokio::net::lookup_host((host, uri.port_u16().unwrap_or(80))).await;
    let mut addresses = addresses
        .map_err(|error| FetchError {
            unasked: is_shortage(&error),
            ..FetchError::new(reason_of(&error))
        })?
        .peekable();
    let mut failure = FetchError::new(format!("{host}: the name has no address"));
    let mut unasked = true;
    while let Some(address) = addresses.next() {
        let attempt = TcpStream::connect(address);
        let tried = match addresses.peek() {
            Some(_) => timeout(ADDRESS_PATIENCE, attempt).await,
            None => Ok(attempt.await),
        };
        let error = match tried {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
        unasked &= is_shortage(&error);
        failure = FetchError {
            reason: format!("{address}: {}", reason_of(&error)),
            refused: failure.refused || error.kind() == io::ErrorKind::ConnectionRefused,
            late: false,
            unasked,
        };
    }
    Err(failure)
}

fn request(uri: &Uri, authorization: Option<&str>) -> Result<Request<Empty<Bytes>>, FetchError> {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::get(target)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .header(header::ACCEPT, "*/*")
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::USER_AGENT, "infinilm-router");
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    request
        .body(Empty::new())
        .map_err(|error| FetchError::new(error.to_string()))
}

async fn body_of(response: Response<Incoming>, limit: usize) -> Result<Bytes, FetchError> {
    let mut body = response.into_body();
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            whole.extend_from_slice(&data);
        }
        if whole.len() > limit {
            return Err(FetchError::new(format!("answer larger than {limit} bytes")));
        }
    }
    Ok(whole.into())
}

/// The JSON value of an answer; NaN and infinities, which JSON has not, become null.
pub fn parse_json(body: &[u8]) -> Result<Value, FetchError> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let text = std::str::from_utf8(body);
    let text = text.map_err(|error| FetchError::new(format!("not JSON: {error}")))?;
    parse(text, Rules::Lenient).map_err(|error| FetchError::new(format!("not JSON: {error}")))
}

/// The `Authorization` field that shows engines the configured API key.
pub fn authorization(config: &RouterConfig) -> Option<String> {
    let key = config.engine_api_key.as_ref()?;
    Some(format!("Bearer {}", key.reveal()))
}
