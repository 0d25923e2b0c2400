//! The way to Postgres: a TCP proxy that cuts connections in the middle of a message, delays, and swallows.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use test_support::random::Random;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What the way does to what passes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    None,
    /// Each connection ends after at most so many more bytes in one of the directions.
    CutWithin(u64),
    Delay(Duration),
    /// Nothing arrives. What was sent does when this is over.
    Swallow,
}

#[derive(Debug, Clone, Copy)]
struct State {
    target: SocketAddr,
    fault: Fault,
    /// Connections of before have ended.
    severed: u64,
}

/// Ends with its handle.
#[derive(Debug)]
pub(crate) struct Wire {
    port: u16,
    state: watch::Sender<State>,
    _listening: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(port: u16, random: Random) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = watch::Sender::new(State {
            target: at(port),
            fault: Fault::None,
            severed: 0,
        });
        let own = listener.local_addr().unwrap().port();
        let mut listening = JoinSet::new();
        listening.spawn(listen(listener, state.subscribe(), random));
        Self {
            port: own,
            state,
            _listening: listening,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn suffers(&self, fault: Fault) {
        self.state.send_modify(|state| state.fault = fault);
    }

    /// Leads elsewhere, from the next connection on; those that there are end.
    pub(crate) fn lead_to(&self, port: u16) {
        self.state.send_modify(|state| {
            state.target = at(port);
            state.severed += 1;
        });
    }
}

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

async fn listen(listener: TcpListener, state: watch::Receiver<State>, mut random: Random) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.unwrap();
                connections.spawn(carry(client, state.clone(), random.fork()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One direction that ends ends both.
async fn carry(client: TcpStream, mut state: watch::Receiver<State>, mut random: Random) {
    let severed = state.borrow_and_update().severed;
    let target = state.borrow().target;
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let there = pump(from_client, to_server, state.clone(), random.fork());
    let back = pump(from_server, to_client, state.clone(), random.fork());
    tokio::select! {
        _ = there => {}
        _ = back => {}
        _ = state.wait_for(|state| state.severed != severed) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    mut random: Random,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut left = None;
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let mut bytes = &buffer[..read];
        let fault = state.borrow_and_update().fault;
        match fault {
            Fault::None => left = None,
            Fault::Delay(time) => sleep(time).await,
            Fault::Swallow => {
                let over = state.wait_for(|state| state.fault != Fault::Swallow).await;
                over.map_err(io::Error::other)?;
            }
            Fault::CutWithin(most) => {
                let rest = left.get_or_insert_with(|| random.below(most));
                bytes = &bytes[..bytes
                    .len()
                    .min(usize::try_from(*rest).unwrap_or(usize::MAX))];
                *rest -= bytes.len() as u64;
            }
        }
        to.write_all(bytes).await?;
        if bytes.len() < read {
            return Ok(());
        }
    }
}
