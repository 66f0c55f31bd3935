//! Probes engines: three bad answers in a row take one out, two good ones bring it back.
//!
//! A refused connection at the engine's own port takes it out at once: nobody is there. An answer
//! that is late says nothing while requests get theirs: the engine is busy. Nor does a probe say
//! anything for which the router lacked a descriptor.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use crate::config::RouterConfig;
use crate::router::load::entry;
use crate::router::spread::Spread;
use crate::router::table::{Service, ServiceTable, TableStore};
use crate::utils::fetch::{FetchError, Fetched, Question, authorization, fetch, parse_json};
use crate::utils::json::quoted;
use crate::utils::metrics::locked;
use crate::utils::tasks::TaskSet;

/// Seconds, at most, while the verdict is changing.
const FAST_INTERVAL: f64 = 1.0;
/// A models list may be the probe.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
const NOT_HERE: [u16; 3] = [404, 405, 501];
const NEEDS_KEY: [u16; 2] = [401, 403];

/// A service's name and where it is probed: at another address it is another engine.
type Key = (String, Vec<String>);

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    Ok,
    Failed,
    /// Nothing listens at the engine's own port.
    Refused,
    Timeout,
    /// No answer in time, but requests get theirs; or the router could not ask. It says nothing.
    Busy,
}

impl ProbeResult {
    /// Its word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Busy => "busy",
        }
    }
}

/// A finished probe, and what is wrong with the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub result: ProbeResult,
    pub reason: String,
}

/// Turns single results into a verdict. The first result of all counts by itself.
#[derive(Clone, Copy, Debug)]
pub struct RiseFall {
    fall: u32,
    rise: u32,
    pub up: bool,
    /// Results in a row that speak against the verdict.
    streak: u32,
    judged: bool,
}

impl RiseFall {
    /// Up until the first result.
    pub fn new(fall: u32, rise: u32) -> Self {
        Self {
            fall,
            rise,
            up: true,
            streak: 0,
            judged: false,
        }
    }

    /// Take in a result; true when it changed the verdict, as a `conclusive` one always does.
    pub fn count(&mut self, good: bool, conclusive: bool) -> bool {
        let first = !std::mem::replace(&mut self.judged, true);
        if good == self.up {
            self.streak = 0;
            return false;
        }
        self.streak += 1;
        let needed = match (first || conclusive, self.up) {
            (true, _) => 1,
            (false, true) => self.fall,
            (false, false) => self.rise,
        };
        if self.streak < needed {
            return false;
        }
        (self.up, self.streak) = (good, 0);
        true
    }

    /// True while results speak against the verdict: the next one is worth having soon.
    pub fn changing(&self) -> bool {
        self.streak > 0
    }
}

/// What is known of an engine's probes: `last_check` is wall time, None before the first.
#[derive(Clone, Debug, Default)]
pub struct ProbeView {
    pub last_check: Option<f64>,
    pub down_reason: Option<String>,
    pub results: BTreeMap<&'static str, u64>,
}

type OnChange = Box<dyn Fn(&Service, bool) + Send + Sync>;
type HeardSince = Box<dyn Fn(&str, Instant) -> bool + Send + Sync>;

/// One task and at most one probe in flight for each engine.
///
/// A new engine is up until its first probe, at once, says otherwise. Only `down` of the table is
/// written here: what the registry says and what traffic shows are kept apart (D5). Of traffic it
/// asks one thing, `heard_since(name, moment)`: has a byte of an answer come from that engine?
pub struct HealthProber {
    config: ArcSwap<RouterConfig>,
    store: Arc<TableStore>,
    on_change: OnChange,
    heard_since: HeardSince,
    views: Mutex<HashMap<String, ProbeView>>,
    spread: Mutex<Spread>,
}

impl HealthProber {
    /// A prober that has not begun; `on_change` hears of each change: the engine, and whether it is up.
    pub fn new(
        config: Arc<RouterConfig>,
        store: Arc<TableStore>,
        on_change: OnChange,
        heard_since: HeardSince,
    ) -> Self {
        Self {
            config: ArcSwap::new(config),
            store,
            on_change,
            heard_since,
            views: Mutex::default(),
            spread: Mutex::default(),
        }
    }

    /// Probe by these settings from now on.
    pub fn configure(&self, config: Arc<RouterConfig>) {
        self.config.store(config);
    }

    /// What is known of one engine's probes.
    pub fn view(&self, name: &str) -> ProbeView {
        locked(&self.views).get(name).cloned().unwrap_or_default()
    }

    /// Keep a probe task for each engine, until dropped.
    pub async fn run(self: Arc<Self>) {
        let mut tasks = TaskSet::default();
        loop {
            let table = self.store.current();
            tasks.keep(wanted(&table), |engine| Arc::clone(&self).watch(engine));
            self.forget(&table);
            self.store.changed(&table).await;
        }
    }

    fn forget(&self, table: &ServiceTable) {
        let names: HashSet<&str> = table.engines.iter().map(|e| e.name.as_str()).collect();
        locked(&self.views).retain(|name, _| names.contains(name.as_str()));
    }

    /// Probe one engine for ever.
    async fn watch(self: Arc<Self>, engine: Arc<Service>) {
        let config = self.config.load_full();
        let mut verdict = RiseFall::new(config.health_fall, config.health_rise);
        self.store.set_down(&engine.name, false); // said of the engine that had the name before
        locked(&self.views).insert(engine.name.clone(), ProbeView::default());
        loop {
            let finding = self.probe(&engine).await;
            self.take_in(&engine, &mut verdict, &finding);
            let config = self.config.load_full();
            (verdict.fall, verdict.rise) = (config.health_fall, config.health_rise);
            let mut interval = config.health_interval;
            if verdict.changing() || !verdict.up || finding.result == ProbeResult::Busy {
                interval = interval.min(FAST_INTERVAL);
            }
            let turn = Turn::new(&self.spread, interval);
            sleep_until(turn.moment).await;
        }
    }

    fn take_in(&self, engine: &Service, verdict: &mut RiseFall, finding: &Finding) {
        let result = finding.result;
        let good = result == ProbeResult::Ok;
        if result != ProbeResult::Busy && verdict.count(good, result == ProbeResult::Refused) {
            self.change(engine, finding);
        }
        let mut views = locked(&self.views);
        let view = entry(&mut views, &engine.name);
        view.last_check = Some(wall_time());
        *view.results.entry(result.as_str()).or_default() += 1;
        if verdict.up {
            view.down_reason = None;
        } else if !good && result != ProbeResult::Busy {
            view.down_reason = Some(finding.reason.clone());
        }
    }

    fn change(&self, engine: &Service, finding: &Finding) {
        let (name, up) = (&engine.name, finding.result == ProbeResult::Ok);
        if up {
            tracing::info!("engine up name={name}");
        } else {
            tracing::warn!("engine down name={name} reason={}", quoted(&finding.reason));
        }
        self.store.set_down(name, !up);
        (self.on_change)(engine, up);
    }

    /// One probe, and what it found.
    async fn probe(&self, engine: &Service) -> Finding {
        let began = Instant::now();
        let error = match self.ask(engine).await {
            Ok(fault) => {
                return Finding {
                    result: if fault.is_none() {
                        ProbeResult::Ok
                    } else {
                        ProbeResult::Failed
                    },
                    reason: fault.unwrap_or_default(),
                };
            }
            Err(error) => error,
        };
        let result = if error.refused && ends_at_own_port(engine) {
            ProbeResult::Refused // only the engine's own port ends here as refused
        } else if error.unasked {
            ProbeResult::Busy
        } else if !error.late {
            ProbeResult::Failed
        } else if (self.heard_since)(&engine.name, began) {
            ProbeResult::Busy
        } else {
            ProbeResult::Timeout
        };
        Finding {
            result,
            reason: error.reason,
        }
    }

    async fn ask(&self, engine: &Service) -> Asked {
        let urls = engine.health_urls();
        let (first, own) = match urls.as_slice() {
            [only] => return Ok(fault(only, &self.get(only, None).await?)),
            [first, own @ ..] => (first, own),
            [] => return Ok(None),
        };
        if !self.has_neighbour(engine) {
            match self.get(first, None).await {
                Ok(answer) => return Ok(fault(first, &answer)),
                Err(error) if error.refused => {}
                Err(error) => return Err(error),
            }
        }
        self.ask_itself(own).await
    }

    /// Whether the next port belongs to another engine, and so not to a babysitter.
    fn has_neighbour(&self, engine: &Service) -> bool {
        let after = (engine.host.as_str(), engine.port.saturating_add(1));
        self.store
            .current()
            .engines
            .iter()
            .any(|other| other.address() == after)
    }

    /// An engine without a babysitter: its health call, or its models list where it has none.
    async fn ask_itself(&self, urls: &[String]) -> Asked {
        // For the engine itself only: a `health_url` may lead anywhere.
        let authorization = authorization(&self.config.load());
        let mut answered = 0;
        for (index, url) in urls.iter().enumerate() {
            let answer = self.get(url, authorization.as_deref()).await?;
            answered = answer.status;
            if NOT_HERE.contains(&answered) {
                continue;
            }
            // It asks for a key that only its clients have: it is there and works.
            let works = index > 0 && NEEDS_KEY.contains(&answered);
            return Ok(if works { None } else { fault(url, &answer) });
        }
        let (first, last) = (urls.first(), urls.last());
        let (first, last) = (
            first.map_or("", String::as_str),
            last.map_or("", String::as_str),
        );
        Ok(Some(format!(
            "{first} and {last} answered {answered}; set metadata.health_url"
        )))
    }

    async fn get(&self, url: &str, authorization: Option<&str>) -> Result<Fetched, FetchError> {
        let question = Question {
            url,
            timeout: self.config.load().health_timeout,
            limit: MAX_ANSWER_BYTES,
            authorization,
        };
        fetch(question).await
    }
}

/// What is wrong with an engine by its own answers.
type Asked = Result<Option<String>, FetchError>;

/// The moment of a probe to come; given back however the wait ends.
struct Turn<'s> {
    spread: &'s Mutex<Spread>,
    moment: Instant,
}

impl<'s> Turn<'s> {
    fn new(spread: &'s Mutex<Spread>, interval: f64) -> Self {
        let moment = locked(spread).next(Instant::now(), interval);
        Self { spread, moment }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        locked(self.spread).done(self.moment);
    }
}

fn wanted(table: &ServiceTable) -> Vec<(Key, Arc<Service>)> {
    let keyed = |engine: &Arc<Service>| {
        (
            (engine.name.clone(), engine.health_urls()),
            Arc::clone(engine),
        )
    };
    table.engines.iter().map(keyed).collect()
}

/// Whether the last address that is asked is the one that requests go to.
fn ends_at_own_port(engine: &Service) -> bool {
    let urls = engine.health_urls();
    let own = format!("http://{}", engine.netloc(u32::from(engine.port)));
    let rest = urls.last().and_then(|url| url.strip_prefix(&own));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
}

/// What is wrong by an answer; babysitters say it in one word, such as `stalled`.
fn fault(url: &str, answer: &Fetched) -> Option<String> {
    if (200..=299).contains(&answer.status) {
        return None;
    }
    let content = parse_json(&answer.body).unwrap_or_default();
    let word = content.get("status").and_then(Value::as_str);
    let said = word.filter(|word| is_word(word));
    let said = said.map_or_else(String::new, |word| format!(" ({word})"));
    Some(format!("{url} answered {}{said}", answer.status))
}

fn is_word(text: &str) -> bool {
    let is_letter = |byte: u8| byte == b'_' || byte.is_ascii_lowercase();
    (1..=32).contains(&text.len()) && text.bytes().all(is_letter)
}

/// Seconds since 1970.
pub fn wall_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
