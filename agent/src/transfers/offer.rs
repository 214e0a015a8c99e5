//! Offering a file or a tree: hash it, say what it is, and serve it to the server.
//!
//! A file is opened once under the path rules and stays open, so that what was hashed is what is
//! served whatever happens to its name; a tree is its root, open, and what every file looked like. After the offer the agent opens a file channel and seeds
//! until the server has everything; a server that does not know the transfer yet closes the
//! channel, and it is dialled again.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use skein_filemesh::core::link::Have;
use skein_filemesh::core::peer_wire::{Handshake, info_hash, peer_id};
use skein_filemesh::core::seeder::{Pull, ROOM_MIN, Seeder};
use skein_filemesh::engine::HashedFile;
use skein_observe::names;
use skein_wire::hello::ChannelKind;
use skein_wire::ids::TransferId;
use skein_wire::signal::v1::{FileInfo, FileOffer, OfferFile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use self::offered::{Offered, Seed};
use super::{Shared, Stop, cancelled};
use crate::clock;
use crate::link::{LinkStream, Redial};

mod offered;

/// An offer that nobody fetches ends after this.
const LIFE_MS: u64 = 3_600_000;
/// A channel on which nothing is asked for ends after this.
const IDLE_MS: u64 = 60_000;
/// An offer that could not be made, or only says how large something is, is told for this long.
const ERROR_TIME: Duration = Duration::from_secs(60);
/// Bytes prepared for one write.
const WRITE_BYTES: usize = 256 * 1024;
/// Requests are small.
const READ_BYTES: usize = 16 * 1024;
/// Between two attempts while the server gets ready.
const AGAIN_MAX: Duration = Duration::from_secs(2);

/// How one channel ended.
enum Served {
    /// The server has everything.
    All,
    /// For this reason, and maybe not for good.
    Broken(String),
}

/// Runs an offer to its end.
pub(super) async fn run(
    shared: &Shared,
    id: TransferId,
    offer: OfferFile,
    mut cancel: watch::Receiver<Stop>,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let work = async {
        if offer.look {
            let looked = look(shared, &offer).await;
            let (file, error) = match looked {
                Ok(file) => (Some(file), String::new()),
                Err(error) => (None, error),
            };
            shared.board.offer(id, FileOffer { transfer_id: id.to_bytes(), file, error });
            shared.changed.notify_one();
            return tokio::time::sleep(ERROR_TIME).await;
        }
        match prepare(shared, id, &offer, stop.clone()).await {
            Ok((offered, hashed)) => serve(shared, id, &offered, hashed).await,
            Err(error) => {
                tracing::warn!(transfer = %id, %error, "file is not offered");
                let transfer_id = id.to_bytes();
                shared.board.offer(id, FileOffer { transfer_id, error, ..FileOffer::default() });
                shared.changed.notify_one();
                tokio::time::sleep(ERROR_TIME).await;
            }
        }
    };
    tokio::select! {
        () = work => {}
        _ = cancelled(&mut cancel) => stop.store(true, Ordering::Relaxed),
    }
    let _ = std::fs::remove_file(leaves_path(shared, &id));
}

fn leaves_path(shared: &Shared, id: &TransferId) -> PathBuf {
    shared.settings.dir.join(format!("{id}.leaves"))
}

/// Says how large what is asked for is.
async fn look(shared: &Shared, offer: &OfferFile) -> Result<FileInfo, String> {
    let (rules, order) = (shared.settings.rules.clone(), offer.clone());
    let found = tokio::task::spawn_blocking(move || {
        let offered = offered::find(&rules, &order)?;
        let tree = matches!(offered, Offered::Tree(_));
        let size_bytes = offered.size_bytes()?;
        Ok(FileInfo { size_bytes, tree, ..FileInfo::default() })
    });
    found.await.map_err(|error| error.to_string())?
}

/// Opens and hashes what is asked for and puts the offer on the board.
async fn prepare(
    shared: &Shared,
    id: TransferId,
    offer: &OfferFile,
    stop: Arc<AtomicBool>,
) -> Result<(Offered, HashedFile), String> {
    let _turn = shared.hashing.acquire().await.map_err(|_| "the agent stops".to_owned())?;
    let (rules, order) = (shared.settings.rules.clone(), offer.clone());
    let found = tokio::task::spawn_blocking(move || offered::find(&rules, &order));
    let offered = found.await.map_err(|error| error.to_string())??;
    let leaves = leaves_path(shared, &id);
    let piece_bytes = (offer.piece_bytes > 0).then_some(offer.piece_bytes);
    let hashing = tokio::task::spawn_blocking(move || {
        let hashed = offered.hash(piece_bytes, &leaves, |_| match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        hashed.map(|hashed| (offered, hashed))
    });
    let (offered, hashed) = hashing.await.map_err(|error| error.to_string())??;
    let tree = matches!(offered, Offered::Tree(_));
    let told = FileOffer {
        transfer_id: id.to_bytes(),
        file: Some(FileInfo { tree, ..hashed.manifest.to_info() }),
        error: String::new(),
    };
    shared.board.offer(id, told);
    shared.changed.notify_one();
    Ok((offered, hashed))
}

async fn serve(shared: &Shared, id: TransferId, offered: &Offered, hashed: HashedFile) {
    let mut redial = Redial::default();
    let expiry_ms = clock::now_ms() + LIFE_MS;
    while clock::now_ms() < expiry_ms {
        let (pause, why) = match shared.settings.dialer.connect(ChannelKind::File).await {
            Err(error) => (redial.after(&error), error.to_string()),
            Ok(link) => match channel(shared, &id, offered, &hashed, link).await {
                Served::All => return,
                Served::Broken(why) => (redial.after_session(0).min(AGAIN_MAX), why),
            },
        };
        tracing::info!(transfer = %id, why, "file channel is dialled again");
        tokio::time::sleep(pause).await;
    }
}

/// Seeds on one channel.
async fn channel(
    shared: &Shared,
    id: &TransferId,
    offered: &Offered,
    hashed: &HashedFile,
    link: LinkStream,
) -> Served {
    let broken = |error: &dyn std::fmt::Display| Served::Broken(error.to_string());
    let mut seed = match offered.seed(&hashed.stamp) {
        Ok(seed) => seed,
        Err(error) => return broken(&error),
    };
    let agent = shared.settings.dialer.identity().get().agent_id.clone();
    let ours = Handshake::new(info_hash(&id.0, &hashed.manifest.root), peer_id(agent.as_str()));
    let tree = hashed.leaves.tree().clone();
    let mut seeder = Seeder::connect(tree, Have::All, ours, clock::now_ms());
    let (mut reader, mut writer) = tokio::io::split(link.io);
    let (mut input, mut output) = (Vec::with_capacity(READ_BYTES), Vec::new());
    let mut wanted = false;
    loop {
        if let Err(error) = fill(&mut seeder, &mut seed, hashed, &mut output) {
            return broken(&error);
        }
        let mut sending = !output.is_empty();
        let send = async {
            writer.write_all(&output).await?;
            writer.flush().await
        };
        tokio::pin!(send);
        loop {
            let timeout = tokio::time::sleep(Duration::from_millis(IDLE_MS / 2));
            tokio::select! {
                sent = &mut send, if sending => {
                    if let Err(error) = sent {
                        return broken(&error);
                    }
                    sending = false;
                }
                read = reader.read_buf(&mut input) => match read {
                    Ok(0) => return ended(&seeder, wanted, "the server closed the file channel"),
                    Err(error) => return ended(&seeder, wanted, &error.to_string()),
                    Ok(_) => match seeder.receive(&input, clock::now_ms()) {
                        Ok(used) => drop(input.drain(..used)),
                        Err(error) => return broken(&error),
                    },
                },
                () = timeout => {
                    let now = clock::now_ms();
                    if now >= seeder.heard_ms() + IDLE_MS {
                        return ended(&seeder, wanted, "nothing was asked for");
                    }
                    seeder.tick(now);
                }
            }
            // A peer that has everything still has to flush and rename: it ends the channel.
            wanted |= seeder.is_interested();
            if !sending && seeder.has_output() {
                break;
            }
        }
        output.clear();
    }
}

fn ended(seeder: &Seeder, wanted: bool, why: &str) -> Served {
    if wanted && !seeder.is_interested() { Served::All } else { Served::Broken(why.to_owned()) }
}

/// Appends what the peer shall get next.
fn fill(
    seeder: &mut Seeder,
    seed: &mut Seed,
    hashed: &HashedFile,
    output: &mut Vec<u8>,
) -> Result<(), skein_filemesh::engine::FileError> {
    while output.len() + ROOM_MIN < WRITE_BYTES {
        let room = WRITE_BYTES - output.len();
        let before = output.len();
        match seeder.next(room, output, clock::now_ms()) {
            Some(Pull::Data { offset, len }) => {
                seed.append_at(offset, len as usize, output)?;
                metrics::counter!(names::AGENT_FILE_SENT_BYTES).increment(len.into());
            }
            Some(Pull::Leaves { first, count }) => {
                let mut leaves = Vec::new();
                let read = hashed.leaves.append_leaves(first, count, &mut leaves);
                seeder.leaves(read.ok().map(|()| leaves.as_slice()), output, clock::now_ms());
            }
            None if output.len() == before => break,
            None => {}
        }
    }
    Ok(())
}
