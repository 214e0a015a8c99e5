//! How other threads reach the task thread: a bounded queue and a descriptor to poll.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

/// Letters that may wait. A full box refuses commands, which the server then sees refused.
pub const LETTERS_MAX: usize = 4096;

/// The sending side; cheap to clone.
#[derive(Debug)]
pub struct Mailbox<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    letters: Mutex<VecDeque<T>>,
    wake: UnixStream,
}

/// The receiving side.
#[derive(Debug)]
pub struct Inbox<T> {
    shared: Arc<Shared<T>>,
    woken: UnixStream,
}

/// A mailbox and its inbox.
pub fn mailbox<T>() -> io::Result<(Mailbox<T>, Inbox<T>)> {
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let shared = Arc::new(Shared { letters: Mutex::new(VecDeque::new()), wake });
    Ok((Mailbox { shared: shared.clone() }, Inbox { shared, woken }))
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Mailbox<T> {
        Mailbox { shared: self.shared.clone() }
    }
}

impl<T> Shared<T> {
    fn letters(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.letters.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl<T> Mailbox<T> {
    /// Puts a letter in; a full box gives it back. Never blocks.
    pub fn send(&self, letter: T) -> Result<(), T> {
        let mut letters = self.shared.letters();
        if letters.len() >= LETTERS_MAX {
            return Err(letter);
        }
        letters.push_back(letter);
        drop(letters);
        // A full socket means that the reader has been woken already.
        let _ = (&self.shared.wake).write(b"w");
        Ok(())
    }
}

impl<T> Inbox<T> {
    /// Readable when there are letters.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    /// All letters.
    pub fn take(&self) -> VecDeque<T> {
        let mut buffer = [0; 256];
        while matches!((&self.woken).read(&mut buffer), Ok(256)) {}
        std::mem::take(&mut *self.shared.letters())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::wait_readable;

    #[test]
    fn letters_wake_the_reader_and_the_box_is_bounded() {
        let (mailbox, inbox) = mailbox().unwrap();
        assert_eq!(wait_readable(&[inbox.fd()], Some(0)).unwrap(), [false]);
        (0..LETTERS_MAX).for_each(|letter| mailbox.send(letter).unwrap());
        assert_eq!(mailbox.send(7), Err(7));
        assert_eq!(wait_readable(&[inbox.fd()], Some(1000)).unwrap(), [true]);
        assert_eq!(inbox.take().len(), LETTERS_MAX);
        assert!(inbox.take().is_empty());
        assert_eq!(wait_readable(&[inbox.fd()], Some(0)).unwrap(), [false]);
    }
}
