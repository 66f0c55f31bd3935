//! What all connections share, and the checks and the head of a request that is forwarded.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memchr::memmem;
use serde_json::Value;

use crate::config::RouterConfig;
use crate::handlers::context::Context;
use crate::proxy::heads::RequestHead;
use crate::proxy::pool::UpstreamPool;
use crate::proxy::server::ClientHandle;
use crate::router::load::LoadBook;
use crate::router::queue::WaitingRoom;
use crate::router::table::{Service, TableStore};
use crate::utils::access_log::{AccessLog, Attempt, Level, Record, Refusal};
use crate::utils::errors::{CLIENT_CLOSED, Code, RouterError, client_end};
use crate::utils::headers::{RequestIds, push_decimal, random_hex};
use crate::utils::metrics::{Counters, Failure, locked};
use crate::utils::time::{Instant, seconds};

/// The inference names that engines serve without the /v1 prefix. Everything else that engines
/// publish (sleep, weights, abort ...) stays closed unless `proxy_paths` opens it.
const OPEN_PATHS: [&str; 10] = [
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/rerank",
    "/score",
    "/tokenize",
    "/detokenize",
    "/responses",
    "/messages",
    "/generate",
];
const OPEN_PREFIXES: [&str; 5] = ["/v1/", "/audio/", "/images/", "/responses/", "/messages/"];
const LENGTH_ALWAYS: [&[u8]; 3] = [b"POST", b"PUT", b"PATCH"];
/// Bytes that are read at once.
const SCRATCH: usize = 64 * 1024;

/// The settings as the data path uses them.
pub struct Settings {
    pub config: Arc<RouterConfig>,
    pub first_byte_timeout: Duration,
    pub response_timeout: Duration,
    pub idle_timeout: Duration,
    /// None = no limit.
    pub stream_timeout: Option<Duration>,
    pub queue_timeout: Duration,
    /// None = never.
    pub sse_ping_interval: Option<Duration>,
    pub head_timeout: Duration,
    pub body_timeout: Duration,
    pub keep_alive_timeout: Duration,
    pub write_timeout: Duration,
    pub retry_on_reset: bool,
}

const RETRY_ON_RESET: &str = "reset-before-headers";

impl Settings {
    /// The settings of a checked configuration.
    pub fn new(config: Arc<RouterConfig>) -> Self {
        Self {
            first_byte_timeout: seconds(config.first_byte_timeout),
            response_timeout: seconds(config.response_timeout),
            idle_timeout: seconds(config.idle_timeout),
            stream_timeout: Some(seconds(config.stream_timeout)).filter(|t| !t.is_zero()),
            queue_timeout: seconds(config.queue_timeout),
            sse_ping_interval: Some(seconds(config.sse_ping_interval)).filter(|t| !t.is_zero()),
            head_timeout: seconds(config.head_timeout),
            body_timeout: seconds(config.body_timeout),
            keep_alive_timeout: seconds(config.keep_alive_timeout),
            write_timeout: seconds(config.write_timeout),
            retry_on_reset: config.retry_on.contains(&RETRY_ON_RESET),
            config,
        }
    }
}

/// What the threads share.
pub struct Shared {
    pub store: Arc<TableStore>,
    pub book: Arc<LoadBook>,
    pub room: Arc<WaitingRoom>,
    pub context: Context,
    /// How this router calls itself in `Via`.
    pub via: String,
}

impl Shared {
    /// The parts of one router; the app makes them.
    pub fn new(
        store: Arc<TableStore>,
        book: Arc<LoadBook>,
        room: Arc<WaitingRoom>,
        context: Context,
    ) -> Self {
        Self {
            store,
            book,
            room,
            context,
            via: format!("infinilm-{}", random_hex(4)),
        }
    }
}

/// The parts that the connections of one thread need.
pub struct Gateway {
    pub shared: Arc<Shared>,
    pub pool: UpstreamPool,
    pub access_log: Rc<AccessLog>,
    pub counters: Arc<Mutex<Counters>>,
    pub draining: Cell<bool>,
    pub clients: RefCell<HashMap<u64, Rc<ClientHandle>>>,
    /// What is read lands here first; it belongs to whoever runs, until his next await.
    pub scratch: RefCell<Vec<u8>>,
    settings: RefCell<Arc<Settings>>,
    ids: RefCell<RequestIds>,
    next_client: Cell<u64>,
}

impl Gateway {
    /// The gateway of one thread.
    pub fn new(shared: Arc<Shared>, settings: Arc<Settings>) -> Self {
        let config = &settings.config;
        Self {
            counters: shared.context.counters.for_thread(),
            shared,
            pool: UpstreamPool::new(
                seconds(config.pool_idle_timeout),
                seconds(config.proxy_connect_timeout),
            ),
            access_log: Rc::new(AccessLog::new(Level::named(config.access_log))),
            draining: Cell::new(false),
            clients: RefCell::default(),
            scratch: RefCell::new(vec![0; SCRATCH]),
            ids: RefCell::default(),
            next_client: Cell::new(0),
            settings: RefCell::new(settings),
        }
    }

    /// Serve by these settings from now on; requests under way keep their deadlines.
    pub fn configure(&self, settings: Arc<Settings>) {
        let config = &settings.config;
        self.pool
            .idle_timeout
            .set(seconds(config.pool_idle_timeout));
        self.pool
            .connect_timeout
            .set(seconds(config.proxy_connect_timeout));
        self.access_log.level.set(Level::named(config.access_log));
        *self.settings.borrow_mut() = settings;
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// A new request id.
    pub fn new_request_id(&self) -> String {
        self.ids.borrow_mut().next_id()
    }

    /// Register a new client; false when there are too many.
    pub fn admit(&self, client: &Rc<ClientHandle>) -> (u64, bool) {
        let number = self.next_client.get();
        self.next_client.set(number + 1);
        self.clients.borrow_mut().insert(number, Rc::clone(client));
        let before = self
            .shared
            .context
            .connections
            .fetch_add(1, Ordering::Relaxed);
        let most = self.settings.borrow().config.max_connections;
        (number, before < most)
    }

    /// A client's connection has ended.
    pub fn forget(&self, number: u64) {
        self.clients.borrow_mut().remove(&number);
        self.shared
            .context
            .connections
            .fetch_sub(1, Ordering::Relaxed);
    }

    // Accounts: each request has one outcome, each failure one line that says why.

    /// A proxied request has its outcome.
    pub fn exchange_ended(&self, record: &Record<'_>) {
        let now = Instant::now();
        let first = record.first_byte_at;
        let first = first.map(|first| first.saturating_duration_since(record.started));
        let model = record.request.model.as_deref();
        let failure = record.failure.map(|(failure, _)| failure.clone());
        let mut counters = locked(&self.counters);
        counters.ended(model, &self.shared.store.peek().named, failure, first);
        counters.bytes_sent += record.bytes_sent;
        drop(counters);
        self.access_log.exchange(record, now);
    }

    /// An attempt failed, and with it not yet the request.
    pub fn attempt_failed(&self, attempt: &Attempt<'_>) {
        locked(&self.counters).retried(attempt.failure.clone());
        self.access_log.attempt(attempt, Instant::now());
    }

    /// A request was answered with an error before it could be forwarded.
    pub fn refused(&self, id: &str, client: &str, error: &RouterError, phase: &'static str) {
        let failure = Failure {
            engine: String::new(),
            phase,
            code: error.code.text(),
        };
        self.not_forwarded(&Refusal {
            request_id: id,
            client,
            status: error.http_status(),
            failure: &failure,
            reason: &error.message,
        });
    }

    /// A client left in the middle of its request.
    pub fn request_cut(&self, client: &str) {
        let failure = Failure {
            engine: String::new(),
            phase: "client",
            code: CLIENT_CLOSED,
        };
        self.not_forwarded(&Refusal {
            request_id: &self.new_request_id(),
            client,
            status: 0,
            failure: &failure,
            reason: client_end(CLIENT_CLOSED),
        });
    }

    fn not_forwarded(&self, refusal: &Refusal<'_>) {
        let failure = Some(refusal.failure.clone());
        locked(&self.counters).ended(None, &HashSet::new(), failure, None);
        self.access_log.refused(refusal);
    }

    /// May this request go to an engine?
    ///
    /// # Errors
    ///
    /// `path_not_allowed` or `loop_detected`.
    pub fn check_forwardable(&self, head: &RequestHead) -> Result<(), RouterError> {
        let path = head.path();
        let is_open = OPEN_PREFIXES.iter().any(|prefix| path.starts_with(prefix))
            || OPEN_PATHS.contains(&path)
            || self.opened(path);
        if !is_open {
            let text = format!("{path} is not a path of the API; --proxy-paths opens further ones");
            return Err(RouterError::new(Code::PathNotAllowed, text));
        }
        let own = self.shared.via.as_bytes();
        if head
            .via
            .iter()
            .any(|value| memmem::find(value, own).is_some())
        {
            let text = "this router is registered as an engine of itself";
            return Err(RouterError::new(Code::LoopDetected, text));
        }
        Ok(())
    }

    fn opened(&self, path: &str) -> bool {
        let settings = self.settings.borrow();
        let mut prefixes = settings.config.proxy_paths.iter();
        prefixes.any(|prefix| path.starts_with(prefix.as_str()))
    }

    /// Write the request's head as the engine gets it (docs/HTTP.md section 4).
    pub fn upstream_head(&self, asked: &Asked<'_>, service: &Service, out: &mut Vec<u8>) {
        let head = asked.head;
        out.extend_from_slice(&head.method);
        out.push(b' ');
        push_target(service, head, out);
        out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        service.push_host_field(out);
        out.extend_from_slice(b"\r\n");
        match &self.settings.borrow().config.engine_api_key {
            None => out.extend_from_slice(&head.fields.passed),
            Some(key) => push_with_key(&head.fields.passed, key.reveal(), out),
        }
        out.extend_from_slice(head.hop.get_or_init(|| self.forwarded(asked)));
        push_field(out, b"X-Request-Id", asked.request_id.as_bytes());
        if asked.body_length > 0 || LENGTH_ALWAYS.contains(&head.method.as_slice()) {
            out.extend_from_slice(b"Content-Length: ");
            push_decimal(out, asked.body_length as u64);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    fn forwarded(&self, asked: &Asked<'_>) -> Vec<u8> {
        let known = |name: &[u8]| {
            let mut found = asked.head.forwarded.iter().rev();
            let found = found.find(|(field, _)| asked.trusted && field == name);
            found.map(|(_, value)| value.as_slice())
        };
        let mut out = b"X-Forwarded-For: ".to_vec();
        if let Some(chain) = known(b"x-forwarded-for").filter(|chain| !chain.is_empty()) {
            out.extend_from_slice(chain);
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(asked.peer.as_bytes());
        out.extend_from_slice(b"\r\n");
        let host = asked.head.host.as_deref().unwrap_or(b"");
        push_field(
            &mut out,
            b"X-Forwarded-Host",
            known(b"x-forwarded-host").unwrap_or(host),
        );
        let proto = known(b"x-forwarded-proto").unwrap_or(b"http");
        push_field(&mut out, b"X-Forwarded-Proto", proto);
        for name in [&b"forwarded"[..], b"x-real-ip"] {
            if let Some(value) = known(name) {
                push_field(&mut out, name, value);
            }
        }
        out.extend_from_slice(b"Via: 1.1 ");
        out.extend_from_slice(self.shared.via.as_bytes());
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// What the head for an engine is made of, beside the engine.
pub struct Asked<'a> {
    pub head: &'a RequestHead,
    pub request_id: &'a str,
    pub peer: &'a str,
    /// The client is one of `trusted_proxies`.
    pub trusted: bool,
    pub body_length: usize,
}

fn push_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// The target for one engine: `metadata.api_prefix` maps `/v1/...` and the unprefixed names.
///
/// Without that key the target passes unchanged, byte for byte.
fn push_target(service: &Service, head: &RequestHead, out: &mut Vec<u8>) {
    let prefix = service.metadata.get("api_prefix").and_then(Value::as_str);
    let is_v1 = head.path().starts_with("/v1/");
    let target = match prefix {
        Some("") if is_v1 => &head.target[3..],
        Some("/v1") if !is_v1 => {
            out.extend_from_slice(b"/v1");
            &head.target
        }
        _ => &head.target,
    };
    out.extend_from_slice(target.as_bytes());
}

/// The fields with the engine's own key in place of the client's Authorization.
fn push_with_key(passed: &[u8], key: &str, out: &mut Vec<u8>) {
    const NAME: &[u8] = b"authorization:";
    for line in passed.split_inclusive(|&b| b == b'\n') {
        let is_key = line
            .get(..NAME.len())
            .is_some_and(|name| name.eq_ignore_ascii_case(NAME));
        if !is_key {
            out.extend_from_slice(line);
        }
    }
    out.extend_from_slice(b"Authorization: Bearer ");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\r\n");
}
