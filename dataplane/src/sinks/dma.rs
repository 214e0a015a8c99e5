//! The disk driver on a glommio executor: direct I/O through io_uring, overlapped with ingest.
//!
//! Operations on one file (and on the checkpoint log) form a chain that one task works off; chains
//! of different files overlap, so that a flush of many files costs little more than that of one.
//! Tasks end when their chain is empty and are never cancelled (glommio 0.9 leaks cancelled tasks).
//! What is written how is the rule of [`super::plain`].

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;

use glommio::io::{BufferedFile, DmaFile, OpenOptions};

use super::block::{ALIGN, Write};
use super::disk::{DiskDone, DiskOp, FileId, not_open};
use super::place;
use super::plain::{self, DIRECT_BYTES_MIN, LogFile, allocate_until};

/// A chain of operations in order. `None` is the log.
type Chain = Option<FileId>;

/// Executes operations on the executor that it was made on.
#[derive(Clone)]
pub struct DmaDisk(Rc<Inner>);

struct Inner {
    chains: RefCell<HashMap<Chain, VecDeque<DiskOp>>>,
    files: RefCell<HashMap<FileId, Rc<OpenFile>>>,
    log: RefCell<Option<LogFile>>,
    done: RefCell<Vec<DiskDone>>,
    wake: Box<dyn Fn()>,
}

struct OpenFile {
    /// For what glommio has no operation, and to keep the path under `/proc` alive.
    handle: File,
    buffered: BufferedFile,
    direct: Option<DmaFile>,
    allocated: std::cell::Cell<u64>,
    /// See [`plain`]: a write failed, and the file must be cut first.
    torn: std::cell::Cell<bool>,
}

impl DmaDisk {
    /// A driver whose checkpoint log is at `log`; calls `wake` when something is done.
    pub fn new(log: &Path, wake: Box<dyn Fn()>) -> io::Result<Self> {
        Ok(Self(Rc::new(Inner {
            chains: RefCell::default(),
            files: RefCell::default(),
            log: RefCell::new(Some(LogFile::open(log)?)),
            done: RefCell::default(),
            wake,
        })))
    }

    /// Begins an operation.
    pub fn begin(&self, op: DiskOp) {
        let chain = chain_of(&op);
        if let Some(waiting) = self.0.chains.borrow_mut().get_mut(&chain) {
            return waiting.push_back(op);
        }
        self.0.chains.borrow_mut().insert(chain, VecDeque::from([op]));
        // glommio may run a new task at once, inside this call: nothing may be borrowed here.
        let inner = self.0.clone();
        glommio::spawn_local(async move { inner.work(chain).await }).detach();
    }

    /// What was done since the last call, in order.
    pub fn take_done(&self, into: &mut Vec<DiskDone>) {
        into.append(&mut self.0.done.borrow_mut());
    }
}

fn chain_of(op: &DiskOp) -> Chain {
    match op {
        DiskOp::Open { file, .. }
        | DiskOp::Write { file, .. }
        | DiskOp::Sync { file, .. }
        | DiskOp::Truncate { file, .. }
        | DiskOp::Probe { file, .. }
        | DiskOp::Close { file, .. } => Some(*file),
        DiskOp::Log { .. } => None,
    }
}

impl Inner {
    async fn work(&self, chain: Chain) {
        loop {
            let next = {
                let mut chains = self.chains.borrow_mut();
                let next = chains.get_mut(&chain).and_then(VecDeque::pop_front);
                if next.is_none() {
                    chains.remove(&chain);
                }
                next
            };
            let Some(op) = next else { return };
            let done = self.run(op).await;
            self.done.borrow_mut().push(done);
            (self.wake)();
        }
    }

    async fn run(&self, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Open { file, open, durable } => {
                let placed = blocking(move || place::open(&open, durable)).await;
                let opened = match placed {
                    Ok((handle, opened)) => {
                        self.keep(file, handle, opened.length).await.map(|()| opened)
                    }
                    Err(error) => Err(error),
                };
                DiskDone::Opened(file, opened)
            }
            DiskOp::Write { file, write } => {
                let open = self.files.borrow().get(&file).cloned();
                let result = match open {
                    Some(open) => open.write(&write).await,
                    None => Err(not_open()),
                };
                DiskDone::Written(file, write.block, result)
            }
            DiskOp::Sync { file, durable } => {
                let result = match self.get(file) {
                    Ok(open) if open.torn.get() => Err(plain::torn()),
                    Ok(open) if durable => open.buffered.fdatasync().await.map_err(io::Error::from),
                    other => other.map(|_| ()),
                };
                DiskDone::Synced(file, result)
            }
            DiskOp::Truncate { file, length } => {
                let cut = move |handle: File| plain::truncate(&handle, length);
                let result = self.repair(file, cut).await;
                if let (Ok(open), Ok(_)) = (self.get(file), &result) {
                    open.torn.set(false);
                }
                DiskDone::Truncated(file, result)
            }
            DiskOp::Probe { file, length } => {
                let probe = move |handle: File| plain::probe(&handle, length);
                DiskDone::Probed(file, self.repair(file, probe).await)
            }
            DiskOp::Close { file, length } => {
                let open = self.files.borrow_mut().remove(&file);
                if let Some(open) = open.and_then(Rc::into_inner) {
                    open.close(length).await;
                }
                DiskDone::Closed(file)
            }
            DiskOp::Log { bytes, replace, durable } => {
                DiskDone::Logged(self.write_log(bytes, replace, durable).await)
            }
        }
    }

    fn get(&self, file: FileId) -> io::Result<Rc<OpenFile>> {
        self.files.borrow().get(&file).cloned().ok_or_else(not_open)
    }

    async fn keep(&self, file: FileId, handle: File, length: u64) -> io::Result<()> {
        let path = plain::proc_path(&handle);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let buffered = options.buffered_open(&path).await.map_err(io::Error::from)?;
        // glommio panics on what it cannot open directly later on, so ask the kernel first.
        let direct = match plain::open_direct(&handle) {
            Some(_) => options.dma_open(&path).await.ok(),
            None => None,
        };
        let open =
            OpenFile { handle, buffered, direct, allocated: length.into(), torn: false.into() };
        self.files.borrow_mut().insert(file, Rc::new(open));
        Ok(())
    }

    /// Runs rare and slow work on a file on glommio's helper thread.
    async fn repair<T: Send + 'static>(
        &self,
        file: FileId,
        act: impl FnOnce(File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let open = self.get(file)?;
        open.allocated.set(0);
        let handle = open.handle.try_clone()?;
        blocking(move || act(handle)).await
    }

    /// The log has one chain, so its file is at home whenever an operation begins.
    async fn write_log(&self, bytes: Vec<u8>, replace: bool, durable: bool) -> io::Result<()> {
        let mut log = self.log.borrow_mut().take().ok_or_else(not_open)?;
        if !replace && !durable {
            let result = log.append(&bytes, false);
            *self.log.borrow_mut() = Some(log);
            return result;
        }
        let (log, result) = blocking(move || {
            let result = if replace { log.replace(&bytes) } else { log.append(&bytes, durable) };
            (log, result)
        })
        .await;
        *self.log.borrow_mut() = Some(log);
        result
    }
}

impl OpenFile {
    async fn write(&self, write: &Write) -> io::Result<()> {
        if self.torn.get() {
            return Err(plain::torn());
        }
        let result = self.try_write(write).await;
        self.torn.set(result.is_err());
        result
    }

    async fn try_write(&self, write: &Write) -> io::Result<()> {
        let content = write.block.bytes();
        let whole = content.len() - content.len() % ALIGN;
        let mut from = write.from;
        if let Some(direct) = self.direct.as_ref().filter(|_| whole >= DIRECT_BYTES_MIN) {
            if let Some(until) = allocate_until(self.allocated.get(), write.offset + whole as u64) {
                // Without room for the step the write itself may still fit, or says what is wrong.
                let start = self.allocated.get().max(write.offset);
                let _ = plain::allocate(&self.handle, start, until - start);
                self.allocated.set(until);
            }
            let mut pages = glommio::allocate_dma_buffer(whole);
            pages.as_bytes_mut().copy_from_slice(&content[..whole]);
            exact(direct.write_at(pages, write.offset).await, whole)?;
            from = whole;
        }
        self.write_cached(content[from..].to_vec(), write.offset + from as u64).await
    }

    async fn write_cached(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let length = bytes.len();
        exact(self.buffered.write_at(bytes, offset).await, length)
    }

    async fn close(self, length: u64) {
        plain::cut(&self.handle, length, self.allocated.get());
        if let Some(direct) = self.direct {
            let _ = direct.close().await;
        }
        let _ = self.buffered.close().await;
    }
}

/// A short write means that the rest did not fit.
fn exact<E: Into<io::Error>>(result: Result<usize, E>, expected: usize) -> io::Result<()> {
    match result {
        Ok(written) if written == expected => Ok(()),
        Ok(_) => Err(io::ErrorKind::StorageFull.into()),
        Err(error) => Err(error.into()),
    }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    glommio::executor().spawn_blocking(act).await
}
