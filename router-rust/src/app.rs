//! The router as a whole: makes the parts, runs the loops, drains and cleans up.

use std::future::pending;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{AbortHandle, LocalSet};
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use crate::config::RouterConfig;
use crate::config_load::ConfigError;
use crate::handlers::context::Context;
use crate::models::catalog::ModelCatalog;
use crate::models::learner::ModelLearner;
use crate::port::{Fault, Port, confirm};
use crate::proxy::gateway::{Settings, Shared};
use crate::proxy::worker::{LOOKUPS_TIME, Phase, Workers, new_runtime, tell};
use crate::registry::client::{RegistryClient, TIMEOUT};
use crate::registry::sync::RegistrySync;
use crate::router::engine::Limits;
use crate::router::health::{HealthProber, wall_time};
use crate::router::load::LoadBook;
use crate::router::policies::Policy;
use crate::router::queue::{RoomLimits, WaitingRoom};
use crate::router::selection::Rules;
use crate::router::table::TableStore;
use crate::utils::handover::{Door, HandoverError, Successor};
use crate::utils::listen::plain_reason;
use crate::utils::logging::LogLevel;
use crate::utils::resources::raise_descriptor_limit;
use crate::utils::time::seconds;

type Reload = Box<dyn Fn() -> Result<RouterConfig, ConfigError>>;
type Configured = Box<dyn Fn(&Arc<RouterConfig>)>;

/// Owns every part and every task; `run` returns when all of them have ended.
///
/// `reload` reads the configuration again (SIGHUP).
pub struct App {
    config: Arc<RouterConfig>,
    log_level: LogLevel,
    reload: Reload,
    configured: Vec<Configured>,
    loops: Vec<AbortHandle>,
    draining: Arc<AtomicBool>,
}

/// The signals that the router knows.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// SIGTERM or SIGINT.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// The same, so many times.
    async fn stop_after(&mut self, count: u32) {
        for _ in 0..count {
            self.stop().await;
        }
    }

    /// SIGHUP, or one of those that stop the router: true.
    async fn reload_or_stop(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
            _ = self.hangup.recv() => false,
        }
    }
}

impl App {
    /// An app that has not begun; `run` does the work.
    pub fn new(config: RouterConfig, log_level: LogLevel, reload: Reload) -> Self {
        Self {
            config: Arc::new(config),
            log_level,
            reload,
            configured: Vec::new(),
            loops: Vec::new(),
            draining: Arc::default(),
        }
    }

    /// Serve until SIGTERM or SIGINT, then drain. Returns the exit code.
    pub fn run(mut self) -> ExitCode {
        raise_descriptor_limit();
        let started = new_runtime().map_err(Fault::from).and_then(|runtime| {
            let ended = LocalSet::new().block_on(&runtime, self.serve());
            // A look-up of a name that hangs must not hold up the end.
            runtime.shutdown_timeout(LOOKUPS_TIME);
            ended
        });
        match started {
            Ok(()) => {
                info!("stopped");
                ExitCode::SUCCESS
            }
            Err(Fault::Listen(reason)) => {
                let (host, port) = (&self.config.host, self.config.router_port);
                error!(
                    "can't listen address={host}:{port} reason={}",
                    plain_reason(&reason)
                );
                ExitCode::FAILURE
            }
            Err(Fault::Handover(reason)) => {
                error!("can't start reason={reason}");
                ExitCode::FAILURE
            }
        }
    }

    async fn serve(&mut self) -> Result<(), Fault> {
        let mut signals = Signals::new()?;
        let (shared, learner) = self.build();
        let opened = tokio::select! {
            opened = Port::open(&self.config, &shared.context, &learner) => Some(opened?),
            () = signals.stop() => None,
        };
        if let Some(port) = opened {
            self.serve_at(port, shared, &mut signals).await?;
        }
        for running in &self.loops {
            running.abort();
        }
        Ok(())
    }

    fn door(&self) -> Result<Option<Door>, HandoverError> {
        self.config.handover.as_deref().map(Door::open).transpose()
    }

    /// Serve until a signal comes or a successor has taken over, then drain.
    async fn serve_at(
        &mut self,
        port: Port,
        shared: Arc<Shared>,
        signals: &mut Signals,
    ) -> Result<(), Fault> {
        let kept = port.kept;
        let mut door = if port.old.is_none() {
            self.door()?
        } else {
            None
        };
        let settings = Arc::new(Settings::new(Arc::clone(&self.config)));
        let mut workers = Workers::start(shared, settings, port.listeners)?;
        if let Some(inheritance) = port.old {
            confirm(inheritance).await;
            door = self.door().unwrap_or_else(|fault| {
                warn!("the next router can't take over reason={fault}");
                None
            });
        }
        self.announce(port.address);
        let successor = self
            .until_told(&workers, signals, door.as_ref(), &kept)
            .await;
        drop((door, kept)); // the port closes with the last copy of its sockets
        self.drain(&mut workers, signals, successor).await;
        workers.join();
        Ok(())
    }

    /// Returns when a signal stops the router, or with the successor that has taken over.
    async fn until_told(
        &mut self,
        workers: &Workers,
        signals: &mut Signals,
        door: Option<&Door>,
        kept: &[TcpListener],
    ) -> Option<Successor> {
        let mut offered = pin!(async {
            match door {
                Some(door) => door.offer(kept).await,
                None => pending().await,
            }
        });
        loop {
            tokio::select! {
                successor = &mut offered => return Some(successor),
                stop = signals.reload_or_stop() => if stop { return None },
            }
            self.configure(workers);
        }
    }

    fn build(&mut self) -> (Arc<Shared>, Arc<ModelLearner>) {
        let config = Arc::clone(&self.config);
        let book = Arc::new(LoadBook::default());
        let following = Arc::clone(&book);
        let store = Arc::new(TableStore::new(Some(Box::new(move |last, new| {
            following.follow(last, new, Instant::now());
        }))));
        let room = WaitingRoom::new(Arc::clone(&store), Arc::clone(&book));
        set_limits(&config, &store, &book, &room);
        store.set_services(
            config.static_services.clone(),
            config.registry_urls.is_empty(),
        );
        let learner = Arc::new(ModelLearner::new(Arc::clone(&config), Arc::clone(&store)));
        // The threads see in the table which engines went down, and drop their connections.
        let hearing = Arc::clone(&book);
        let prober = Arc::new(HealthProber::new(
            Arc::clone(&config),
            Arc::clone(&store),
            Box::new(|_, _| {}),
            Box::new(move |name, moment| hearing.heard_since(name, moment)),
        ));
        let draining = Arc::clone(&self.draining);
        let context = Context {
            config: Arc::clone(&config),
            store: Arc::clone(&store),
            load: Arc::clone(&book),
            room: Arc::clone(&room),
            catalog: ModelCatalog::new(Arc::clone(&store)),
            prober: Arc::clone(&prober),
            counters: Arc::default(),
            connections: Arc::default(),
            draining: Box::new(move || draining.load(Ordering::Relaxed)),
            started_at: wall_time(),
        };
        self.start_loops(&prober, &learner, &store);
        self.configured.push(Box::new({
            let (store, book, room) = (Arc::clone(&store), Arc::clone(&book), Arc::clone(&room));
            move |new| set_limits(new, &store, &book, &room)
        }));
        self.start("queue", Arc::clone(&room).run());
        (Arc::new(Shared::new(store, book, room, context)), learner)
    }

    fn start_loops(
        &mut self,
        prober: &Arc<HealthProber>,
        learner: &Arc<ModelLearner>,
        store: &Arc<TableStore>,
    ) {
        let config = Arc::clone(&self.config);
        let (probing, learning) = (Arc::clone(prober), Arc::clone(learner));
        self.configured.push(Box::new(move |new| {
            probing.configure(Arc::clone(new));
            learning.configure(Arc::clone(new));
        }));
        self.start("health", Arc::clone(prober).run());
        self.start("models", Arc::clone(learner).run());
        let (learner, store) = (Arc::clone(learner), Arc::clone(store));
        if config.registry_urls.is_empty() {
            self.configured.push(Box::new(move |new| {
                let statics = new.static_services.iter();
                store.set_services(statics.map(|s| learner.fill(s)).collect(), true);
            }));
            return;
        }
        let client = RegistryClient::new(&config.registry_urls, TIMEOUT);
        let sync = Arc::new(RegistrySync::new(&config, client, store, learner));
        self.start("registry", Arc::clone(&sync).run());
        self.configured
            .push(Box::new(move |new| sync.configure(new)));
    }

    fn start(&mut self, name: &'static str, running: impl Future<Output = ()> + 'static) {
        let task = tokio::task::spawn_local(running);
        self.loops.push(task.abort_handle());
        tokio::task::spawn_local(async move {
            // A loop that ends by itself is a fault that must be seen.
            if task.await.is_err_and(|ended| ended.is_panic()) {
                error!("loop died name={name}");
            }
        });
    }

    /// Not by the log: scripts wait for this line, whatever the log level.
    fn announce(&self, address: SocketAddr) {
        let policy = &self.config.policy;
        let mut out = io::stdout().lock();
        let written = writeln!(out, "listening on http://{address} policy={policy}");
        // A full disk or a reader that is gone is no reason not to serve.
        let _ = written.and_then(|()| out.flush());
    }

    /// Apply the configuration as it stands now; a bad one changes nothing.
    fn configure(&mut self, workers: &Workers) {
        let mut new = match (self.reload)() {
            Ok(new) => new,
            Err(faults) => {
                error!("configuration not reloaded, going on with the last one:\n{faults}");
                return;
            }
        };
        keep_what_needs_restart(&self.config, &mut new);
        self.log_level.set(new.log_level);
        self.config = Arc::new(new);
        for configure in &self.configured {
            configure(&self.config);
        }
        workers.configure(Arc::new(Settings::new(Arc::clone(&self.config))));
        info!("configuration reloaded");
    }

    /// Stop taking requests, let running ones end; one signal more ends at once.
    async fn drain(
        &self,
        workers: &mut Workers,
        signals: &mut Signals,
        successor: Option<Successor>,
    ) {
        let in_flight = workers.shared.book.in_flight();
        let mut signals_left = 1;
        if let Some(successor) = successor {
            // The port is served as ever: connections that are still here hear nothing of it.
            workers.order(Phase::HandedOver);
            successor.release();
            info!("handed over in_flight={in_flight}");
            signals_left = 2;
        } else {
            self.draining.store(true, Ordering::Relaxed);
            workers.order(Phase::Draining);
            info!("draining in_flight={in_flight}");
        }
        let shared = Arc::clone(&workers.shared);
        let delay = seconds(self.config.drain_delay);
        let limit = delay + seconds(self.config.drain_timeout);
        let phase = tokio::select! {
            () = workers.drained(delay) => return,
            never = tell(&shared) => never,
            () = sleep(limit) => Phase::Ending,
            () = signals.stop_after(signals_left) => {
                info!("second signal: stopping at once");
                Phase::Stopped
            }
        };
        workers.order(phase);
        workers.ended().await;
    }
}

/// Let load and waiting go by these settings.
fn set_limits(config: &RouterConfig, store: &TableStore, book: &LoadBook, room: &WaitingRoom) {
    let limits = Limits {
        max_fails: config.max_errors,
        max_concurrency: config.max_concurrency,
        slow_start: seconds(config.slow_start),
    };
    book.configure(limits, &store.peek());
    let rules = Rules {
        policy: Policy::named(config.policy),
        cache_type_threshold: config.cache_type_routing_threshold,
        last_choice: false,
    };
    let limits = RoomLimits {
        size: usize::try_from(config.queue_size).unwrap_or(usize::MAX),
        timeout: config.queue_timeout,
        bytes: config.queue_bytes,
    };
    room.configure(rules, limits);
}

/// Take over nothing that a running router can't change.
fn keep_what_needs_restart(old: &RouterConfig, new: &mut RouterConfig) {
    fn keep<T: Clone + PartialEq>(name: &str, old: &T, new: &mut T) {
        if new != old {
            warn!("setting needs a restart name={name}");
            new.clone_from(old);
        }
    }
    keep("host", &old.host, &mut new.host);
    keep("router_port", &old.router_port, &mut new.router_port);
    keep("registry_urls", &old.registry_urls, &mut new.registry_urls);
    keep("state_dir", &old.state_dir, &mut new.state_dir);
    keep("handover", &old.handover, &mut new.handover);
}
