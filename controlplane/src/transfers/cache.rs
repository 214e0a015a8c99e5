//! The cache of files to be pushed: `DIR/control/cache/<id>` with its leaves beside it.
//!
//! A file is hashed while it streams in, so that a push begins the moment the upload ends. The
//! cache is bounded in bytes, keeps a reserve of free space on its disk, and forgets what nobody
//! uses; an upload that does not fit is refused before its first byte.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use skein_filemesh::core::manifest::{Manifest, choose_piece_bytes};
use skein_filemesh::engine::{FileError, StoreFile, check_file_name};
use skein_observe::names;
use skein_wire::ids::{TransferId, hex_encode};
use skein_wire::signal::v1::FileInfo;
use tokio::sync::mpsc;

use crate::api::types::Upload;
use crate::files::free_bytes;
use crate::store::ext::decode;
use crate::store::{Batch, Store, StoreError, StoreExt};
use crate::{clock, random};

const UPLOADS: &str = "uploads/";
/// Chunks of one upload between the network and the disk.
const CHUNKS_WAITING: usize = 16;
/// Space that is left free on the cache's disk, for everything else that lives there.
const FREE_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// Files in the cache.
const FILES_MAX: usize = 10_000;
/// Piece sizes are chosen for this many hosts: the targets are not known yet at upload.
pub(super) const HOSTS_ASSUMED: u32 = 1_000;
/// Where data processes keep what they know of partial files.
const FETCH_STATE: &str = ".fetch";
/// How the names of their partial files begin.
const FETCH_PREFIX: &str = ".skein-";
/// A fetch that is complete is reported within milliseconds.
const REPORT_LATE_MS: i64 = 2_000;
/// No fetch goes on longer than a transfer may.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(8 * 24 * 3_600);

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A field of the request.
    #[error("{0}")]
    Invalid(String),
    /// It does not fit.
    #[error("{0}")]
    NoSpace(String),
    /// The body ended early or late.
    #[error("{got} bytes came of {announced} that were announced; upload the file again")]
    Length {
        /// What came.
        got: u64,
        /// What was announced.
        announced: u64,
    },
    /// The disk.
    #[error("cache: {0}")]
    Disk(#[from] io::Error),
    /// The hashes.
    #[error("cache: {0}")]
    File(#[from] FileError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What bounds the cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Bytes of all files together.
    pub bytes_max: u64,
    /// A file that nobody uses is forgotten after this time.
    pub expiry_ms: i64,
}

#[derive(Debug, Default)]
struct State {
    uploads: BTreeMap<TransferId, Upload>,
    /// Files that arrive, with the bytes that they will take.
    arriving: HashMap<TransferId, u64>,
    /// How many transfers use a file.
    uses: HashMap<TransferId, u32>,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    store: Arc<dyn Store>,
    limits: CacheLimits,
    state: Mutex<State>,
}

/// What an uploader says of the bytes that follow.
#[derive(Clone, Debug)]
pub struct Content {
    /// The file's name; what a tree shall be called.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
    /// Time of last change; none: now.
    pub mtime_ms: Option<i64>,
    /// It is the stream of a tree.
    pub tree: bool,
}

/// Room for an upload; given back when dropped.
#[derive(Debug)]
struct Room {
    cache: Arc<Cache>,
    id: TransferId,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        state.arriving.remove(&self.id);
        self.cache.report(&state);
    }
}

/// The file as commands describe it.
pub fn file_info(upload: &Upload) -> FileInfo {
    let root = skein_wire::ids::hex_decode::<32>(&upload.root).unwrap_or_default();
    FileInfo {
        size_bytes: upload.size_bytes,
        piece_bytes: upload.piece_bytes,
        root: Bytes::copy_from_slice(&root),
        name: upload.name.clone(),
        mode: upload.mode,
        mtime_ms: upload.mtime_ms,
        tree: upload.tree,
    }
}

impl Cache {
    /// Opens a cache.
    pub async fn open(
        folder: PathBuf,
        store: Arc<dyn Store>,
        limits: CacheLimits,
    ) -> Result<Self, CacheError> {
        let mut state = State::default();
        for entry in store.range_all(UPLOADS).await? {
            let upload: Upload = decode(&entry)?;
            let Ok(id) = upload.upload_id.parse::<TransferId>() else { continue };
            let whole = fs::metadata(folder.join(id.to_string()))
                .is_ok_and(|file| file.len() == upload.size_bytes);
            match whole {
                true => drop(state.uploads.insert(id, upload)),
                false => drop(store.commit(Batch::new().delete(entry.key)).await?),
            }
        }
        let this = Self { folder, store, limits, state: Mutex::new(state) };
        this.report(&this.lock());
        Ok(this)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(state: &State) -> u64 {
        state.uploads.values().map(|upload| upload.size_bytes).sum::<u64>()
            + state.arriving.values().sum::<u64>()
    }

    fn report(&self, state: &State) {
        metrics::gauge!(names::CONTROL_CACHE_BYTES).set(Self::used(state) as f64);
        let files = state.uploads.len() + state.arriving.len();
        metrics::gauge!(names::CONTROL_KEPT, "kind" => "upload").set(files as f64);
    }

    /// Removes what belongs to no file that is here or arrives: what a crash or a broken fetch
    /// left. The data process's partial files have names of their own and go when they are old.
    /// Blocks.
    pub fn remove_strangers(&self) -> io::Result<()> {
        let partials = fs::read_dir(self.folder.join(FETCH_STATE)).into_iter().flatten();
        for file in fs::read_dir(&self.folder)?.chain(partials) {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            let stem = name.strip_prefix(FETCH_PREFIX).unwrap_or(&name);
            let id = stem.split('.').next().unwrap_or_default().parse::<TransferId>();
            // Gone since: another has removed it.
            let Ok(metadata) = file.metadata() else { continue };
            let age = metadata.modified()?.elapsed().unwrap_or_default();
            let is_stranger = match id {
                Ok(id) => {
                    let state = self.lock();
                    !state.uploads.contains_key(&id) && !state.arriving.contains_key(&id)
                }
                Err(_) => age > PARTIAL_AGE_MAX,
            };
            if is_stranger && metadata.is_file() {
                let _ = fs::remove_file(file.path());
            }
        }
        Ok(())
    }

    /// Where a file stands.
    pub fn path(&self, id: &TransferId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    /// Bytes held and bound.
    pub fn bytes(&self) -> (u64, u64) {
        (Self::used(&self.lock()), self.limits.bytes_max)
    }

    /// All files, oldest first.
    pub fn list(&self) -> Vec<Upload> {
        let mut list: Vec<Upload> = self.lock().uploads.values().cloned().collect();
        list.sort_by(|a, b| (a.created_ms, &a.upload_id).cmp(&(b.created_ms, &b.upload_id)));
        list
    }

    /// One file.
    pub fn get(&self, id: &TransferId) -> Option<Upload> {
        self.lock().uploads.get(id).cloned()
    }

    /// Keeps a file while a transfer uses it. None: it is not there (any more).
    pub fn pin(&self, id: &TransferId) -> Option<Upload> {
        let mut state = self.lock();
        let upload = state.uploads.get(id).cloned()?;
        *state.uses.entry(*id).or_default() += 1;
        Some(upload)
    }

    /// A transfer does not need a file any more.
    pub fn unpin(&self, id: &TransferId) {
        let mut state = self.lock();
        if let Some(uses) = state.uses.get_mut(id) {
            *uses -= 1;
            if *uses == 0 {
                state.uses.remove(id);
            }
        }
    }

    /// Keeps room for a file of `bytes`, or says why there is none. Once it is kept, asking again
    /// changes nothing.
    pub fn expect(&self, id: &TransferId, bytes: u64) -> Result<(), CacheError> {
        let mut state = self.lock();
        if state.arriving.contains_key(id) {
            return Ok(());
        }
        let used = Self::used(&state);
        let max = self.limits.bytes_max;
        let files = state.uploads.len() + state.arriving.len();
        if used.saturating_add(bytes) > max || files >= FILES_MAX {
            return Err(CacheError::NoSpace(format!(
                "the cache holds {used} of {max} bytes in {files} files and cannot take {bytes} \
                 more; delete uploads that are not needed or raise control.cache_bytes_max"
            )));
        }
        let free = free_bytes(&self.folder)?;
        let arriving: u64 = state.arriving.values().sum();
        if bytes.saturating_add(arriving).saturating_add(FREE_BYTES_MIN) > free {
            return Err(CacheError::NoSpace(format!(
                "{} has {free} free bytes, which is too little for {bytes} and a reserve of \
                 {FREE_BYTES_MIN}; make room on that disk",
                self.folder.display()
            )));
        }
        state.arriving.insert(*id, bytes);
        self.report(&state);
        Ok(())
    }

    /// Keeps room for a file whose fetch began before this process did.
    pub fn expect_still(&self, id: &TransferId, bytes: u64) {
        self.lock().arriving.insert(*id, bytes);
    }

    /// A file that was expected does not come.
    pub fn abandon(&self, id: &TransferId) {
        let was_expected = self.lock().arriving.remove(id).is_some();
        if was_expected {
            self.remove_files(id);
            self.report(&self.lock());
        }
    }

    /// Whether a file that is fetched stands in its place, whole, and for so long that whoever
    /// put it there should have said so. It is renamed into place only when all of it is proved
    /// and flushed, so its name says as much as a report.
    pub fn has_arrived(&self, id: &TransferId, bytes: u64) -> bool {
        fs::metadata(self.path(id)).is_ok_and(|file| {
            let age_ms = clock::now_ms() - file.ctime() * 1_000 - file.ctime_nsec() / 1_000_000;
            file.is_file() && file.len() == bytes && age_ms > REPORT_LATE_MS
        })
    }

    /// Begins an upload of an announced length: chunks go into the sender, and the future yields
    /// the stored file when the sender was dropped after the last.
    pub fn receive(
        self: &Arc<Self>,
        content: Content,
        size_bytes: u64,
    ) -> Result<
        (mpsc::Sender<Bytes>, impl Future<Output = Result<Upload, CacheError>> + Send + use<>),
        CacheError,
    > {
        let Content { name, mode, mtime_ms, tree } = content;
        check_file_name(name.as_bytes())
            .map_err(|error| CacheError::Invalid(format!("file name {name:?}: {error}")))?;
        if mode & !0o7777 != 0 {
            return Err(CacheError::Invalid(format!("mode {mode:o} has bits beyond 7777")));
        }
        let id = TransferId(random::bytes()?);
        let this = self.clone();
        let (chunks, queue) = mpsc::channel(CHUNKS_WAITING);
        let mtime_ms = mtime_ms.unwrap_or_else(clock::now_ms);
        let attributes = Attributes { name, mode, mtime_ms };
        // Refused here before the first byte.
        self.expect(&id, size_bytes)?;
        let room = Room { cache: self.clone(), id };
        let finished = async move {
            let _room = room;
            let path = this.path(&id);
            let writing = tokio::task::spawn_blocking({
                let path = path.clone();
                move || write_hashed(&path, attributes, size_bytes, queue)
            });
            let manifest = match writing.await.map_err(io::Error::other)? {
                Ok(manifest) => manifest,
                Err(error) => {
                    this.remove_files(&id);
                    return Err(error);
                }
            };
            this.keep(id, &manifest, tree).await
        };
        Ok((chunks, finished))
    }

    /// Enters a file that stands in the cache.
    pub async fn keep(
        &self,
        id: TransferId,
        manifest: &Manifest,
        tree: bool,
    ) -> Result<Upload, CacheError> {
        let now_ms = clock::now_ms();
        let upload = Upload {
            upload_id: id.to_string(),
            name: manifest.name.clone(),
            size_bytes: manifest.geometry.size_bytes(),
            root: hex_encode(&manifest.root),
            piece_bytes: manifest.geometry.piece_bytes(),
            mode: manifest.mode,
            mtime_ms: manifest.mtime_ms,
            tree,
            created_ms: now_ms,
            expires_ms: now_ms + self.limits.expiry_ms,
        };
        self.store.put_json(&format!("{UPLOADS}{id}"), &upload).await?;
        let mut state = self.lock();
        state.arriving.remove(&id);
        state.uploads.insert(id, upload.clone());
        self.report(&state);
        Ok(upload)
    }

    fn remove_files(&self, id: &TransferId) {
        let path = self.path(id);
        // A data process may still write into what it has open; nobody finds it any more.
        let partial = self.folder.join(format!("{FETCH_PREFIX}{id}.part"));
        let state = self.folder.join(FETCH_STATE).join(format!("{id}.state"));
        let (upload, leaves) = (path.with_extension("part"), path.with_extension("leaves"));
        for path in [upload, leaves, path, partial, state] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove");
                }
                _ => {}
            }
        }
    }

    /// Forgets a file. Some(false): a transfer uses it; None: there is none.
    pub async fn delete(&self, id: &TransferId) -> Result<Option<bool>, CacheError> {
        {
            let mut state = self.lock();
            if !state.uploads.contains_key(id) {
                return Ok(None);
            }
            if state.uses.contains_key(id) {
                return Ok(Some(false));
            }
            state.uploads.remove(id);
            self.report(&state);
        }
        self.store.commit(Batch::new().delete(format!("{UPLOADS}{id}"))).await?;
        self.remove_files(id);
        Ok(Some(true))
    }

    /// Forgets what has expired and is not used.
    pub async fn sweep(&self) -> Result<(), CacheError> {
        let now_ms = clock::now_ms();
        let expired: Vec<TransferId> = {
            let state = self.lock();
            let old = state.uploads.iter().filter(|(_, upload)| upload.expires_ms < now_ms);
            old.map(|(id, _)| *id).collect()
        };
        for id in expired {
            self.delete(&id).await?;
        }
        Ok(())
    }
}

/// What an uploader says of a file besides its bytes.
struct Attributes {
    name: String,
    mode: u32,
    mtime_ms: i64,
}

/// Writes a file while it is hashed. Blocks; runs on a thread of its own.
fn write_hashed(
    path: &std::path::Path,
    attributes: Attributes,
    size_bytes: u64,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<Manifest, CacheError> {
    let piece_bytes = choose_piece_bytes(size_bytes, HOSTS_ASSUMED);
    let mut file = StoreFile::create(path, &path.with_extension("leaves"), piece_bytes)?;
    while let Some(chunk) = chunks.blocking_recv() {
        file.append(&chunk)?;
        if file.size_bytes() > size_bytes {
            break;
        }
    }
    if file.size_bytes() != size_bytes {
        return Err(CacheError::Length { got: file.size_bytes(), announced: size_bytes });
    }
    let Attributes { name, mode, mtime_ms } = attributes;
    Ok(file.finish(&name, mode, mtime_ms)?.manifest)
}
