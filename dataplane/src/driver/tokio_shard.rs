//! The tokio driver: one current-thread runtime per shard, one small task per connection.
//!
//! A task owns a socket and nothing else; sessions, buffers and timers are the shard's. When mail
//! or a timer gives a session something to do, its task is woken by the waker that it left here.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use metrics::counter;
use skein_observe::names;
use skein_wire::hello::ChannelKind;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::MissedTickBehavior;

use crate::limits::{MAIL_BATCH, TURNS_PER_POLL};
use crate::session::Shared;
use crate::shard::{AcceptRefused, ConnKey, Shard, ShardMail, TICK_MS};
use crate::tls::TlsAcceptor;

use super::clock::{monotonic_ms, unix_ms};
use super::listen::Listeners;

/// What a shard's thread is started with.
pub struct ShardParts {
    /// Its number.
    pub number: u16,
    /// Its listening sockets.
    pub listeners: Listeners,
    /// Its mail.
    pub mailbox: flume::Receiver<ShardMail>,
    /// Shared by all shards.
    pub shared: Arc<Shared>,
    /// Makes TLS sessions.
    pub tls: TlsAcceptor,
    /// Most sessions of this shard.
    pub sessions_max: usize,
}

/// Runs a shard on this thread until it is shut down.
pub fn run(parts: ShardParts) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, serve(parts))
}

async fn serve(parts: ShardParts) -> io::Result<()> {
    let ShardParts { number, listeners, mailbox, shared, tls, sessions_max } = parts;
    let mut shard = Shard::new(number, shared.clone(), tls, sessions_max, monotonic_ms());
    shard.turn(monotonic_ms(), unix_ms());
    let shell = Rc::new(Shell { shard: RefCell::new(shard), wakers: RefCell::default(), shared });
    let mut acceptors = Vec::new();
    for (kind, listener) in listeners {
        let listener = TcpListener::from_std(listener)?;
        acceptors.push(tokio::task::spawn_local(accept(shell.clone(), kind, listener)));
    }
    let mut tick = tokio::time::interval(Duration::from_millis(TICK_MS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !shell.shard.borrow().is_over() {
        tokio::select! {
            mail = mailbox.recv_async() => match mail {
                Ok(mail) => shell.mail(mail, &mailbox, &mut acceptors),
                Err(_) => return Ok(()), // every sender is gone: the process ends
            },
            scheduled = tick.tick() => {
                let late = scheduled.elapsed();
                let mut shard = shell.shard.borrow_mut();
                shard.metrics().loop_lag.record(late.as_secs_f64());
                shard.turn(monotonic_ms(), unix_ms());
            }
        }
        shell.apply();
        tokio::task::yield_now().await;
    }
    Ok(())
}

struct Shell {
    shard: RefCell<Shard>,
    /// By slot of the session's key.
    wakers: RefCell<Vec<Option<Waker>>>,
    shared: Arc<Shared>,
}

async fn accept(shell: Rc<Shell>, kind: ChannelKind, listener: TcpListener) {
    let accepted = counter!(names::DATA_CONNECTIONS_ACCEPTED, "port" => kind.as_str());
    loop {
        // A storm of reconnects waits in the kernel's backlog instead of being turned away.
        while shell.shard.borrow().is_pre_auth_full() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        match listener.accept().await {
            Ok((stream, remote)) => {
                accepted.increment(1);
                if let Err(refused) = shell.accepted(stream, remote) {
                    counter!(names::DATA_CONNECTIONS_REFUSED, "reason" => refused.as_str())
                        .increment(1);
                }
            }
            Err(error) => {
                // Nearly always: no file descriptor is free. The kernel keeps the connection.
                counter!(names::DATA_CONNECTIONS_REFUSED, "reason" => "accept").increment(1);
                tracing::warn!(%error, port = kind.as_str(), "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Shell {
    fn accepted(
        self: &Rc<Self>,
        stream: TcpStream,
        remote: SocketAddr,
    ) -> Result<(), AcceptRefused> {
        let key = self.shard.borrow_mut().accept(remote)?;
        let _ = stream.set_nodelay(true);
        tokio::task::spawn_local(connection(self.clone(), key, stream));
        Ok(())
    }

    fn mail(
        &self,
        first: ShardMail,
        mailbox: &flume::Receiver<ShardMail>,
        acceptors: &mut Vec<JoinHandle<()>>,
    ) {
        let mut shard = self.shard.borrow_mut();
        for mail in std::iter::once(first).chain(mailbox.try_iter()).take(MAIL_BATCH) {
            if matches!(mail, ShardMail::GoAway | ShardMail::Shutdown) {
                acceptors.drain(..).for_each(|acceptor| acceptor.abort());
            }
            shard.mail(mail);
        }
    }

    /// Carries out what the shard wants of its driver.
    fn apply(self: &Rc<Self>) {
        let (dirty, waits) = {
            let mut shard = self.shard.borrow_mut();
            (shard.take_dirty(), shard.take_waits())
        };
        let wakers = self.wakers.borrow();
        for key in dirty {
            if let Some(Some(waker)) = wakers.get(key.slot()) {
                waker.wake_by_ref();
            }
        }
        for worker in waits {
            let shell = self.clone();
            tokio::task::spawn_local(async move {
                shell.shared.router.ready(worker).await;
                shell.shard.borrow_mut().router_ready(worker);
                shell.apply();
            });
        }
    }

    fn remember(&self, key: ConnKey, waker: &Waker) {
        let mut wakers = self.wakers.borrow_mut();
        if wakers.len() <= key.slot() {
            wakers.resize(key.slot() + 1, None);
        }
        match &mut wakers[key.slot()] {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Moves bytes both ways until the socket or the session has enough.
    fn poll(
        self: &Rc<Self>,
        key: ConnKey,
        socket: &mut Socket,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        self.remember(key, context.waker());
        for _ in 0..TURNS_PER_POLL {
            let mut shard = self.shard.borrow_mut();
            let wrote = socket.write(&mut shard, key, context);
            if shard.is_finished(key) {
                drop(shard);
                if let Some(waker) = self.wakers.borrow_mut().get_mut(key.slot()) {
                    *waker = None;
                }
                self.apply();
                return Poll::Ready(());
            }
            let read = socket.read(&mut shard, key, context);
            drop(shard);
            if !wrote && !read {
                self.apply();
                return Poll::Pending;
            }
        }
        self.apply();
        context.waker().wake_by_ref(); // others first
        Poll::Pending
    }
}

async fn connection(shell: Rc<Shell>, key: ConnKey, stream: TcpStream) {
    let mut socket = Socket { stream, shut: false };
    poll_fn(|context| shell.poll(key, &mut socket, context)).await;
}

struct Socket {
    stream: TcpStream,
    /// Our direction is shut.
    shut: bool,
}

impl Socket {
    /// Writes once; true when bytes went out.
    fn write(&mut self, shard: &mut Shard, key: ConnKey, context: &mut Context<'_>) -> bool {
        let bytes = shard.output(key);
        if bytes.is_empty() {
            if !self.shut && shard.wants_shutdown(key) {
                self.shut = true;
                let _ = Pin::new(&mut self.stream).poll_shutdown(context);
            }
            return false;
        }
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Ready(Ok(written)) => {
                shard.sent(key, written);
                written > 0
            }
            Poll::Ready(Err(_)) => {
                shard.closed(key, true);
                false
            }
            Poll::Pending => false,
        }
    }

    /// Reads once; true when bytes came.
    fn read(&mut self, shard: &mut Shard, key: ConnKey, context: &mut Context<'_>) -> bool {
        // Asked first, because lending moves held bytes.
        if !self.stream.poll_read_ready(context).is_ready() {
            return false;
        }
        let Some(room) = shard.lend(key) else { return false };
        let mut buffer = ReadBuf::new(room);
        let read = Pin::new(&mut self.stream).poll_read(context, &mut buffer);
        let bytes = buffer.filled().len();
        shard.received(key, bytes);
        match read {
            Poll::Ready(Ok(())) if bytes > 0 => return true,
            Poll::Ready(Ok(())) => shard.closed(key, false),
            Poll::Ready(Err(_)) => shard.closed(key, true),
            Poll::Pending => return false,
        }
        true // the session has to end now
    }
}
