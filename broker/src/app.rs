//! The broker as a whole: built from its config, then run until it is told to stop.
//!
//! Here: what the parts share ([`Broker`]), start and stop. Not here: signals and processes (the binary's business).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use axum::serve::ListenerExt;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::at_rest::{AtRest, AtRestError};
use crate::callers::Callers;
use crate::config::{Config, Limits};
use crate::live::{self, Live};
use crate::observed::Observed;
use crate::peer::presence::Presences;
use crate::reconcile::{self, Inbox};
use crate::runner::{BadLink, Runner};
use crate::status::Early;
use crate::store::{Store, StoreConfig, StoreError};
use crate::views::Views;
use crate::{http, metrics};

/// Readers of the database; writes take turns anyway.
const CONNECTIONS: u32 = 8;
/// Uploads that are read at the same time.
const UPLOADS: usize = 4;
/// Sockets that may be between their upgrade and their hello.
const GREETINGS: usize = 256;
/// How long connections may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the database can not be opened: {0}")]
    Store(#[from] StoreError),
    #[error("what is encrypted at rest can not be opened: {0}")]
    AtRest(#[from] AtRestError),
    #[error(transparent)]
    Runner(#[from] BadLink),
    #[error("can not listen on {addr}: {source}")]
    Listen { addr: SocketAddr, source: std::io::Error },
}

/// What every connection, request and the reconciler share.
pub struct Broker {
    pub store: Store,
    pub views: Arc<Views>,
    pub observed: Observed,
    /// Instances of services that run as their caller.
    pub callers: Callers,
    pub presences: Presences,
    pub live: Live,
    /// What hooks said of sessions that are not here yet.
    pub hooks: Early,
    pub runner: Runner,
    pub reconciler: reconcile::Handle,
    pub at_rest: AtRest,
    /// Counts the changes of vault keys and grants, so that the link to the runner sees that there is something to tell.
    pub vault_epoch: AtomicU64,
    pub limits: Limits,
    pub public_url: String,
    pub expected_migration: Option<String>,
    pub started: Instant,
    pub metrics: Option<PrometheusHandle>,
    /// Uploads that are being read: each holds its bytes in memory.
    pub uploads: Semaphore,
    /// Sockets that have not said hello: nobody knows who they are.
    pub greetings: Semaphore,
    pub shutdown: CancellationToken,
    /// Every open WebSocket.
    pub tracker: TaskTracker,
}

/// A broker that is ready to run.
pub struct App {
    broker: Arc<Broker>,
    listener: TcpListener,
    addr: SocketAddr,
    inbox: Inbox,
}

impl App {
    /// Opens the database (with migrations) and binds the port. Starts nothing.
    ///
    /// # Errors
    /// [`BuildError`].
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        let Config { listen, database_url, runner, at_rest_roots, public_url, limits, expected_migration } =
            config;
        // reqwest is built without a TLS provider of its own. A second installation is refused and harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = Store::open(StoreConfig { url: database_url, max_connections: CONNECTIONS }).await?;
        let at_rest = AtRest::new(at_rest_roots).map_err(AtRestError::from)?;
        at_rest.settle(&store).await?;
        let live = live::load(&store).await?;
        let runner = Runner::new(&runner)?;
        let bound = TcpListener::bind(listen).await.and_then(|l| l.local_addr().map(|addr| (l, addr)));
        let (listener, addr) = bound.map_err(|source| BuildError::Listen { addr: listen, source })?;
        let (reconciler, inbox) = reconcile::channel();
        let broker = Arc::new(Broker {
            views: Arc::new(Views::new(store.clone())),
            store,
            observed: Observed::default(),
            callers: Callers::default(),
            presences: Presences::default(),
            live,
            hooks: Early::default(),
            runner,
            reconciler,
            at_rest,
            vault_epoch: AtomicU64::new(0),
            limits,
            public_url,
            expected_migration,
            started: Instant::now(),
            metrics: metrics::install(),
            uploads: Semaphore::new(UPLOADS),
            greetings: Semaphore::new(GREETINGS),
            shutdown: CancellationToken::new(),
            tracker: TaskTracker::new(),
        });
        Ok(Self { broker, listener, addr, inbox })
    }

    /// Where it listens, with the real port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// For the embedding program: the store and the state of the runner.
    pub fn broker(&self) -> Arc<Broker> {
        Arc::clone(&self.broker)
    }

    /// Serves until `shutdown`, then says goodbye to every peer. The runner and its services are left running.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn run(self, shutdown: CancellationToken) -> std::io::Result<()> {
        let Self { broker, listener, addr, inbox } = self;
        tracing::info!("listening on {addr}");
        // Without TCP_NODELAY a small answer waits up to 44 ms for the acknowledgement of the one before.
        let listener = listener.tap_io(|socket| {
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!("no TCP_NODELAY on a connection: {error}");
            }
        });
        let stop = shutdown.clone();
        let own = broker.shutdown.clone();
        let serving =
            axum::serve(listener, http::router(Arc::clone(&broker))).with_graceful_shutdown(async move {
                stop.cancelled().await;
                own.cancel();
            });
        let reconciling = reconcile::run(Arc::clone(&broker), inbox, broker.shutdown.clone());
        let ended = async {
            let (served, ()) = tokio::join!(serving.into_future(), reconciling);
            broker.tracker.close();
            broker.tracker.wait().await;
            served
        };
        let farewell = async {
            shutdown.cancelled().await;
            tokio::time::sleep(FAREWELL).await;
        };
        let served = tokio::select! {
            served = ended => served,
            // A client that holds its request open must not hold the broker.
            () = farewell => Ok(()),
            () = metrics::keep_up(broker.metrics.clone()) => Ok(()),
        };
        broker.store.close().await;
        tracing::info!("stopped");
        served
    }
}
