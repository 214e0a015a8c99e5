//! The engine on io_uring: writes are told to the kernel in batches and end on their own.
//!
//! The pool's slabs are registered with the ring the first time a write comes out of them, as far
//! as RLIMIT_MEMLOCK lets it; the others are written all the same, their pages looked up each time.
//! A ring that the kernel refuses (old kernels, containers, `kernel.io_uring_disabled`) is an error
//! that says why. What the ring does not finish, and all that goes through the page cache, is written
//! by the thread that pushes or reaps.
//!
//! The memory of a write stays in its slot until the ring says that it has ended, whatever happens
//! to the file or the queue: the kernel may read it until then.
#![allow(unsafe_code)] // the kernel is given addresses of slabs

use super::Engine;
use super::file::{Write, write_now};
use crate::engine::memory::{BlockMemory, SLAB_BYTES, View};
use crate::engine::sys;
use io_uring::{IoUring, Probe, opcode, types};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Buffers that a ring can know.
const BUFFERS_MAX: usize = 1 << 14;

/// A ring and its writes.
pub(super) struct Uring {
    ring: IoUring,
    event: OwnedFd,
    /// A slot per write that may be under way.
    slots: Vec<Option<Write>>,
    free: Vec<usize>,
    /// Writes in the submission queue that the kernel has not heard of.
    unsubmitted: usize,
    buffers: Buffers,
    /// The ring failed: writes are made by the caller's thread.
    broken: Option<io::Error>,
    /// Whose slabs are registered. It is pinned and outlives the ring.
    memory: BlockMemory,
}

/// Errors with which a plain system call may do better: the first says that the file system has no
/// direct writes after all.
const AGAIN: [i32; 3] = [libc::EINVAL, libc::EINTR, libc::EAGAIN];

/// Which slabs the ring knows.
struct Buffers {
    known: Vec<bool>,
    count: usize,
    /// Why no more are told.
    stopped: Option<String>,
}

impl Uring {
    pub fn start(depth: usize, register: bool, memory: &BlockMemory) -> Result<Self, String> {
        let entries = depth.next_power_of_two() as u32;
        let ring = IoUring::new(entries)
            .map_err(|error| format!("the kernel does not set up a ring: {error}"))?;
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(|error| format!("the kernel does not say what its ring can: {error}"))?;
        for (code, name) in
            [(opcode::Write::CODE, "write"), (opcode::WriteFixed::CODE, "write_fixed")]
        {
            if !probe.is_supported(code) {
                return Err(format!("the kernel's ring has no {name}"));
            }
        }
        let event = sys::event().map_err(|error| format!("there is no eventfd: {error}"))?;
        ring.submitter()
            .register_eventfd(event.as_raw_fd())
            .map_err(|error| format!("the ring takes no eventfd: {error}"))?;
        let count = memory.counters().slabs_max.min(BUFFERS_MAX);
        let stopped = match register {
            false => Some("not asked for".to_owned()),
            true => ring
                .submitter()
                .register_buffers_sparse(count as u32)
                .map_err(|error| error.to_string())
                .err(),
        };
        if stopped.is_none() {
            memory.pin();
        }
        let buffers = Buffers { known: vec![false; count], count: 0, stopped };
        Ok(Self {
            ring,
            event,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            unsubmitted: 0,
            buffers,
            broken: None,
            memory: memory.clone(),
        })
    }

    /// Puts a write that goes around the page cache into the submission queue.
    fn queue(&mut self, number: usize, write: Write) {
        let view = &write.view;
        let (file, _) = write.file.way(write.offset, view);
        let (fd, offset, len) = (types::Fd(file.as_raw_fd()), write.offset, view.len() as u32);
        let entry = match self.buffers.number(&self.ring, &self.memory, view) {
            Some(buffer) => {
                opcode::WriteFixed::new(fd, view.as_ptr(), len, buffer).offset(offset).build()
            }
            None => opcode::Write::new(fd, view.as_ptr(), len).offset(offset).build(),
        };
        let entry = entry.user_data(number as u64);
        self.slots[number] = Some(write);
        // SAFETY: view and descriptor stay in the slot until the completion of this entry, and the
        // bytes of a view never change.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match pushed {
            Ok(()) => self.unsubmitted += 1,
            // There are as many entries as slots, so this does not happen; the write does.
            Err(_) => self.end_slot(number, 0),
        }
    }

    /// Ends a slot with what the kernel said. What it left undone is written here.
    fn end_slot(&mut self, number: usize, result: i32) {
        let Some(write) = self.slots.get_mut(number).and_then(Option::take) else { return };
        self.free.push(number);
        let result = match usize::try_from(result) {
            Ok(wrote) if wrote == write.view.len() => Ok(()),
            Ok(wrote) => {
                let rest = write.view.slice(wrote.min(write.view.len())..write.view.len());
                write_now(&write.file, write.offset + wrote as u64, &[&rest])
            }
            Err(_) if AGAIN.contains(&-result) => {
                write_now(&write.file, write.offset, &[&write.view])
            }
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        write.end(&result);
    }

    /// Gives the ring up. What the kernel has stays in its slots for good.
    fn give_up(&mut self, error: io::Error) {
        for slot in self.slots.iter_mut().filter_map(Option::take) {
            let error = Err(io::Error::from_raw_os_error(libc::EIO));
            slot.file.ended(slot.offset, slot.view.len(), &error);
            std::mem::forget(slot);
        }
        self.free = (0..self.slots.len()).rev().collect();
        self.broken = Some(error);
    }

    fn enter(&mut self, wait_for: usize) {
        match self.ring.submitter().submit_and_wait(wait_for) {
            Ok(_) => self.unsubmitted = self.ring.submission().len(),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                _ => self.give_up(error),
            },
        }
    }
}

impl Buffers {
    /// The number under which the ring knows the slab of `view`.
    fn number(&mut self, ring: &IoUring, memory: &BlockMemory, view: &View) -> Option<u16> {
        let (number, start) = view.place(memory)?;
        if usize::from(number) >= self.known.len() {
            return None;
        }
        if !self.known[usize::from(number)] {
            if self.stopped.is_some() {
                return None;
            }
            let buffer = libc::iovec { iov_base: start.cast(), iov_len: SLAB_BYTES };
            // SAFETY: the pool is pinned, so that the slab stays at its place until the ring, which
            // holds the pool, is gone.
            let told =
                unsafe { ring.submitter().register_buffers_update(number.into(), &[buffer], None) };
            if let Err(error) = told {
                self.stopped = Some(error.to_string());
                return None;
            }
            self.known[usize::from(number)] = true;
            self.count += 1;
        }
        Some(number)
    }
}

impl Engine for Uring {
    fn push(&mut self, write: Write) {
        // What goes through the page cache is a copy, which a ring would hand to a kernel thread.
        let is_direct = write.file.way(write.offset, &write.view).1;
        let slot = self.free.pop_if(|_| is_direct && self.broken.is_none());
        match slot {
            Some(number) => self.queue(number, write),
            None => {
                let result = write_now(&write.file, write.offset, &[&write.view]);
                write.end(&result);
            }
        }
    }

    fn submit(&mut self) {
        if self.unsubmitted > 0 && self.broken.is_none() {
            self.enter(0);
        }
    }

    fn reap(&mut self) {
        sys::clear_event(self.event.as_fd());
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            self.end_slot(entry.user_data() as usize, entry.result());
        }
        self.submit();
    }

    fn wait(&mut self) {
        if self.under_way() > 0 && self.broken.is_none() {
            self.enter(1);
            self.reap();
        }
    }

    fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn state(&self) -> String {
        if let Some(error) = &self.broken {
            return format!("its ring failed ({error}), so writes are made one by one");
        }
        let Buffers { known, count, stopped } = &self.buffers;
        let registered = format!("{count} of {} slabs are registered", known.len());
        let depth = self.slots.len();
        match stopped {
            Some(why) => format!("{depth} writes under way at most, {registered}, no more: {why}"),
            None => format!("{depth} writes under way at most, {registered} so far"),
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.under_way() > 0 && self.broken.is_none() {
            self.wait();
        }
    }
}
