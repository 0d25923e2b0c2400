//! The doorbell: a connection of its own that hears of commits, so that in bounded mode memory learns of changes sooner
//! than it would have to. What it misses, the feed brings; losing it costs latency and nothing else.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Config, Socket};

use super::Engine;
use crate::error::Error;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

type Listening<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

/// How to listen. The type of the TLS connector ends here.
pub(crate) trait Doorbell: Send + Sync {
    /// Runs until the connection is lost.
    fn listen<'a>(
        &'a self,
        channel: &'a str,
        on_event: &'a (dyn Fn(Event) + Send + Sync),
    ) -> Listening<'a>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Listening,
    Ring,
}

/// A connection to be made.
pub(crate) struct Line<Tls> {
    pub(crate) config: Config,
    pub(crate) tls: Tls,
}

impl<Tls> Doorbell for Line<Tls>
where
    Tls: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    Tls::Stream: Send + Sync,
    Tls::TlsConnect: Send,
    <Tls::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn listen<'a>(
        &'a self,
        channel: &'a str,
        on_event: &'a (dyn Fn(Event) + Send + Sync),
    ) -> Listening<'a> {
        Box::pin(async move {
            let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
            let messages = async {
                while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
                    if let AsyncMessage::Notification(_) = message? {
                        on_event(Event::Ring);
                    }
                }
                Ok::<(), Error>(())
            };
            let listening = async {
                // the name of a schema needs no quotes within
                client
                    .batch_execute(&format!("LISTEN \"{channel}\""))
                    .await?;
                on_event(Event::Listening);
                std::future::pending::<Result<(), Error>>().await
            };
            tokio::select! {
                ended = messages => ended,
                failed = listening => failed,
            }
        })
    }
}

/// Whether there is a connection that listens.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    started: AtomicBool,
    listening: AtomicBool,
}

impl Listener {
    pub(crate) fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Acquire)
    }
}

impl Engine {
    /// Starts to listen, if that is wanted and not done yet.
    pub(super) fn start_listening(self: &Arc<Self>) {
        let Some(doorbell) = &self.settings.doorbell else {
            return;
        };
        if !self.listener.started.swap(true, Ordering::AcqRel) {
            tokio::spawn(keep_listening(
                Running(Arc::downgrade(self)),
                doorbell.clone(),
            ));
        }
    }
}

/// The task does not keep the engine alive. If it ends with its runtime, another one may start.
struct Running(Weak<Engine>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(engine) = self.0.upgrade() {
            engine.listener.listening.store(false, Ordering::Release);
            engine.listener.started.store(false, Ordering::Release);
        }
    }
}

async fn keep_listening(running: Running, doorbell: Arc<dyn Doorbell>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let Some(channel) = prepare(&running).await else {
            return;
        };
        let engine = running.0.clone();
        let on_event = move |event| {
            if let Some(engine) = engine.upgrade() {
                // what was rung for before it listened, this reads
                engine.listener.listening.store(true, Ordering::Release);
                if engine.memory.is_on() && (event == Event::Ring || engine.feed.has_begun()) {
                    engine.want_read_unless_reading();
                }
            }
        };
        let ended = doorbell.listen(&channel, &on_event).await;
        let Some(engine) = running.0.upgrade() else {
            return;
        };
        let was_listening = engine.listener.listening.swap(false, Ordering::AcqRel);
        if let Err(error) = ended {
            tracing::debug!(%error, "the cache does not hear of commits; it goes on asking");
        }
        drop(engine);
        pause = if was_listening {
            FIRST_PAUSE
        } else {
            (pause * 2).min(LONGEST_PAUSE)
        };
        sleep(pause).await;
    }
}

/// Sees to it that commits ring, and returns the channel; `None`: the engine is gone.
async fn prepare(running: &Running) -> Option<String> {
    let engine = running.0.upgrade()?;
    let within = engine.settings.store_deadline;
    let rings = engine.administer("SELECT pgcache.doorbell()::text", within, |_| {});
    if let Err(error) = rings.await {
        tracing::debug!(%error, "commits may not ring the doorbell: call pgcache.doorbell() with a role that owns the schema");
    }
    Some(engine.store.schema().to_owned())
}

impl std::fmt::Debug for dyn Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Doorbell")
    }
}
