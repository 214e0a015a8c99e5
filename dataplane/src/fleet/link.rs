//! The connection itself: connect, register, repeat the sessions, then both directions until it
//! breaks, and again after a back-off.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skein_wire::backoff::Backoff;
use skein_wire::fleet::v1::from_data::Kind;
use skein_wire::fleet::v1::{FromData, Register, SessionDown, SessionUp, SnapshotEnd};
use skein_wire::frame;
use skein_wire::limits::FLEET_MESSAGE_BYTES_MAX;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

use crate::directory::{Change, Directory};
use crate::session::Shared;

use super::receiver::Receiver;
use super::sender::{FleetQueue, FleetSender};

/// First and longest wait between two attempts. Control restarts in well under a second.
const BACKOFF_MS: (u64, u64) = (50, 2_000);

/// Messages are gathered up to this size and written at once.
const WRITE_BYTES: usize = 256 * 1024;

/// What this process says of itself.
pub type RegisterInfo = Register;

/// The link, not yet running.
pub struct FleetLink {
    queue: FleetQueue,
    sender: FleetSender,
}

impl FleetLink {
    /// A link, and what the rest of the process sends with.
    pub fn new() -> (Self, FleetSender) {
        let (sender, queue) = FleetSender::new();
        (Self { queue, sender: sender.clone() }, sender)
    }

    /// Keeps the link up until the process ends.
    pub async fn run(
        self,
        socket: PathBuf,
        own_dir: PathBuf,
        register: RegisterInfo,
        shared: Arc<Shared>,
    ) {
        let mut backoff = Backoff::new(BACKOFF_MS.0, BACKOFF_MS.1);
        let mut receiver = Receiver::new(self.sender, shared.clone(), own_dir);
        loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => {
                    backoff.reset();
                    let end = connected(&self.queue, &mut receiver, stream, &register, &shared);
                    let error = end.await;
                    self.queue.set_up(false);
                    tracing::warn!(%error, "link to the control process ended; work goes on");
                }
                Err(error) => tracing::debug!(%error, "control process is not there yet"),
            }
            let wait_ms = backoff.next_delay(random());
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }
}

async fn connected(
    queue: &FleetQueue,
    receiver: &mut Receiver,
    stream: UnixStream,
    register: &Register,
    shared: &Shared,
) -> io::Error {
    let (mut reader, writer) = stream.into_split();
    tokio::select! {
        end = receiver.run(&mut reader) => end,
        end = send(queue, writer, register, &shared.directory) => end,
    }
}

/// Sends until the connection breaks. Messages that were taken from the queue and not written are
/// lost with it; agents repeat what control has not acknowledged.
async fn send(
    queue: &FleetQueue,
    mut writer: OwnedWriteHalf,
    register: &Register,
    directory: &Directory,
) -> io::Error {
    let mut out = Vec::new();
    put(Kind::Register(register.clone()), &mut out);
    for change in directory.snapshot() {
        put(session_change(change), &mut out);
        if out.len() > WRITE_BYTES
            && let Err(error) = flush(&mut writer, &mut out).await
        {
            return error;
        }
    }
    put(Kind::SnapshotEnd(SnapshotEnd {}), &mut out);
    queue.set_up(true);
    tracing::info!("linked to the control process");
    let mut messages = Vec::new();
    loop {
        if let Err(error) = flush(&mut writer, &mut out).await {
            return error;
        }
        queue.report();
        tokio::select! {
            message = queue.next() => match message {
                Some(message) => messages.push(message),
                None => return io::Error::other("the process ends"),
            },
            () = directory.changed() => {}
        }
        let mut bytes = 0;
        while bytes < WRITE_BYTES
            && let Some(message) = queue.try_next()
        {
            bytes += message.encoded_len();
            messages.push(message);
        }
        // A session is entered before it queues anything, so control knows it when this arrives.
        directory.drain_changes().into_iter().for_each(|c| put(session_change(c), &mut out));
        messages.drain(..).for_each(|message| put(message, &mut out));
    }
}

async fn flush(writer: &mut OwnedWriteHalf, out: &mut Vec<u8>) -> io::Result<()> {
    writer.write_all(out).await?;
    out.clear();
    out.shrink_to(2 * WRITE_BYTES);
    Ok(())
}

fn put(kind: Kind, out: &mut Vec<u8>) {
    let message = FromData { kind: Some(kind) };
    if let Err(error) = frame::encode_message(&message, FLEET_MESSAGE_BYTES_MAX, out) {
        tracing::error!(%error, "a message for the control process is too long; dropped");
    }
}

fn session_change(change: Change) -> Kind {
    match change {
        Change::Up(agent, instance, entry) => Kind::SessionUp(SessionUp {
            agent_id: agent.as_str().to_owned(),
            instance: instance.to_bytes(),
            session_id: entry.session_id,
            remote_addr: entry.remote.to_string(),
            connected_ms: entry.connected_ms,
            certificate_serial: entry.serial,
        }),
        Change::Down { agent, session_id, reason } => Kind::SessionDown(SessionDown {
            agent_id: agent.as_str().to_owned(),
            session_id,
            reason: reason.to_owned(),
        }),
    }
}

/// Jitter; a clock's low bits are random enough for that.
fn random() -> u64 {
    crate::driver::unix_nanos().wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
