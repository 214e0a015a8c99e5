//! Commands that were taken, remembered until they expire: a captured command serves once.

use std::collections::HashMap;

use skein_wire::ids::CommandId;

/// Commands remembered at the same time: an hour of 18 commands a second. About 3 MiB when full.
pub const REMEMBERED_MAX: usize = 65_536;
/// A command may not want to be remembered for longer than this.
pub const LIFE_MS_MAX: i64 = 7 * 24 * 3600 * 1000;
/// The server's clock as we know it may go back a little between two sessions.
const SLACK_MS: i64 = 60_000;

/// Why a command that verifies is still not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotNew {
    /// It was taken before.
    Replayed,
    /// It ended before what is forgotten: it may have been taken.
    Forgotten,
    /// It wants to live too long.
    TooLong,
    /// Too many live commands.
    Full,
}

impl NotNew {
    /// Name for the refusal and its metric.
    pub fn as_str(self) -> &'static str {
        match self {
            NotNew::Replayed => "replayed",
            NotNew::Forgotten => "expired",
            NotNew::TooLong => "deadline_too_far",
            NotNew::Full => "too_many_commands",
        }
    }
}

/// The memory.
#[derive(Debug, Default)]
pub struct Replay {
    taken: HashMap<CommandId, i64>,
    /// What ended before this is forgotten. Never goes back: a server whose clock was set ahead and
    /// back does not make an old command new.
    forgotten_ms: i64,
}

impl Replay {
    /// Takes a command that is valid until `not_after_ms` (server time).
    pub fn take(&mut self, id: CommandId, not_after_ms: i64, now_ms: i64) -> Result<(), NotNew> {
        if self.taken.contains_key(&id) {
            return Err(NotNew::Replayed);
        }
        if not_after_ms < self.forgotten_ms {
            return Err(NotNew::Forgotten);
        }
        if not_after_ms.saturating_sub(now_ms) > LIFE_MS_MAX {
            return Err(NotNew::TooLong);
        }
        if self.taken.len() >= REMEMBERED_MAX {
            self.forget(now_ms);
        }
        if self.taken.len() >= REMEMBERED_MAX {
            return Err(NotNew::Full);
        }
        self.taken.insert(id, not_after_ms);
        Ok(())
    }

    /// Puts back what a journal remembers.
    pub fn restore(&mut self, id: CommandId, not_after_ms: i64) {
        self.taken.insert(id, not_after_ms);
    }

    /// Takes back a command whose journal entry could not be written.
    pub fn untake(&mut self, id: &CommandId) {
        self.taken.remove(id);
    }

    /// Forgets what has expired: the verifier refuses those by itself.
    pub fn forget(&mut self, now_ms: i64) {
        let forgotten_ms = self.forgotten_ms.max(now_ms.saturating_sub(SLACK_MS));
        self.forgotten_ms = forgotten_ms;
        self.taken.retain(|_, not_after_ms| *not_after_ms >= forgotten_ms);
    }

    /// What is remembered.
    pub fn iter(&self) -> impl Iterator<Item = (&CommandId, i64)> {
        self.taken.iter().map(|(id, not_after_ms)| (id, *not_after_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> CommandId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        CommandId(bytes)
    }

    #[test]
    fn a_command_is_taken_once_until_it_expires() {
        let mut replay = Replay::default();
        assert_eq!(replay.take(id(1), 100, 0), Ok(()));
        assert_eq!(replay.take(id(1), 100, 50), Err(NotNew::Replayed));
        assert_eq!(replay.take(id(2), LIFE_MS_MAX + 1, 0), Err(NotNew::TooLong));
        replay.forget(100 + SLACK_MS);
        assert_eq!(replay.take(id(1), 100, 50), Err(NotNew::Replayed));
        replay.forget(101 + SLACK_MS);
        assert_eq!(replay.iter().count(), 0);
        assert_eq!(replay.take(id(1), 100, 50), Err(NotNew::Forgotten), "the clock went back");
        assert_eq!(replay.take(id(3), 101, 50), Ok(()));
    }

    #[test]
    fn the_memory_is_bounded_and_makes_room_of_what_expired() {
        let mut replay = Replay::default();
        for number in 0..REMEMBERED_MAX as u32 {
            replay.take(id(number), 1000, 0).unwrap();
        }
        assert_eq!(replay.take(id(u32::MAX), 1000, 0), Err(NotNew::Full));
        assert_eq!(replay.take(id(u32::MAX), 200_000, 100_000), Ok(()));
    }
}
