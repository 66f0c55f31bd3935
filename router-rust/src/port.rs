//! Where clients connect to: opened by this router, or taken over from the one that runs.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::config::RouterConfig;
use crate::handlers::context::Context;
use crate::models::learner::ModelLearner;
use crate::router::table::Service;
use crate::utils::handover::{HandoverError, Inheritance};
use crate::utils::listen::{bind_all, share_out};

const FIRST_MODELS_TIME: Duration = Duration::from_secs(1);
/// Time in which a successor must know its engines.
const READY_TIME: Duration = Duration::from_secs(30);
const READY_CHECK: Duration = Duration::from_millis(20);

/// Where clients connect to.
pub struct Port {
    /// One group for each thread.
    pub listeners: Vec<Vec<TcpListener>>,
    /// The same sockets, for a successor; the port is open as long as one of them is.
    pub kept: Vec<TcpListener>,
    pub address: SocketAddr,
    /// The router that had it before.
    pub old: Option<Inheritance>,
}

/// Why the router can't serve.
pub enum Fault {
    Listen(io::Error),
    Handover(HandoverError),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Listen(error)
    }
}

impl From<HandoverError> for Fault {
    fn from(error: HandoverError) -> Self {
        Self::Handover(error)
    }
}

impl Port {
    /// This router's own port, or that of the router which runs.
    ///
    /// # Errors
    ///
    /// The port is taken, or nobody gives it.
    pub async fn open(
        config: &RouterConfig,
        ctx: &Context,
        learner: &ModelLearner,
    ) -> Result<Self, Fault> {
        if config.take_over {
            let mut inheritance = inherit(config).await?;
            let (listeners, address) = share_out(config, &inheritance.listeners)?;
            ready(&inheritance, ctx, learner).await?;
            return Ok(Self {
                listeners,
                kept: std::mem::take(&mut inheritance.listeners),
                address,
                old: Some(inheritance),
            });
        }
        // Engines that name no models are asked before the first client comes, if they answer soon.
        let _ = timeout(FIRST_MODELS_TIME, learner.settled()).await;
        let (listeners, address) = bind_all(config)?;
        let all = listeners.iter().flatten();
        Ok(Self {
            kept: all.map(TcpListener::try_clone).collect::<io::Result<_>>()?,
            listeners,
            address,
            old: None,
        })
    }
}

/// Ask the router that runs for its port.
async fn inherit(config: &RouterConfig) -> Result<Inheritance, HandoverError> {
    let path = config.handover.clone().unwrap_or_default();
    let asked = tokio::task::spawn_blocking(move || Inheritance::ask(&path)).await;
    asked.unwrap_or_else(|error| Err(HandoverError(error.to_string())))
}

/// Returns when this router can serve as well as the one before: it knows the engines, has probed
/// each, and has asked those that name no models. Meanwhile clients of an old router that has ended
/// wait in the queue of the port, and are not refused.
async fn ready(
    old: &Inheritance,
    ctx: &Context,
    learner: &ModelLearner,
) -> Result<(), HandoverError> {
    let mut missing = "no registry has answered, and there is no saved list".to_owned();
    let known = async {
        loop {
            let table = ctx.store.current();
            let unknown = |engine: &&Arc<Service>| {
                ctx.prober.view(&engine.name).last_check.is_none() || !learner.has_asked(engine)
            };
            if table.known {
                let Some(engine) = table.engines.iter().find(unknown) else {
                    return;
                };
                missing = format!("engine '{}' has not been asked yet", engine.name);
            }
            sleep(READY_CHECK).await;
        }
    };
    if timeout(READY_TIME, known).await.is_ok() {
        return Ok(());
    }
    if old.is_gone() {
        warn!("not ready, but the router before this one is gone reason={missing}");
        return Ok(());
    }
    let limit = READY_TIME.as_secs();
    Err(HandoverError(format!("not ready in {limit} s: {missing}")))
}

/// Tell the old router that this one serves.
pub async fn confirm(inheritance: Inheritance) {
    let confirmed = tokio::task::spawn_blocking(move || inheritance.confirm()).await;
    if !confirmed.unwrap_or(false) {
        warn!("the router before this one still accepts connections: stop it");
    }
}
