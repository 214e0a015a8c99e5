//! Counts what is really in the files of a `tagged` stream: every record by (agent, data id,
//! epoch, sequence). What a sender or a server says about itself is not asked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::error::CliError;

/// Files that one stream may have here; more means that the folder is not a stream's.
const FILES_MAX: usize = 100_000;

/// A lane's identity.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct LaneKey {
    /// The agent.
    pub agent: String,
    /// The data id.
    pub data_id: u32,
    /// Numbering of the agent's spool.
    pub epoch: u64,
}

/// The sequences of one lane that were seen, as a growing bitmap.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    bits: Vec<u64>,
    unique: u64,
    duplicates: u64,
}

impl Seen {
    /// Takes one more line with this number.
    pub fn add(&mut self, sequence: u64) {
        let (word, bit) = ((sequence / 64) as usize, 1u64 << (sequence % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit != 0 {
            self.duplicates += 1;
        } else {
            self.bits[word] |= bit;
            self.unique += 1;
        }
    }

    /// Different sequences.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// Lines that repeat a sequence.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Sequences below the highest that are absent.
    pub fn missing(&self) -> u64 {
        let Some(last) = self.bits.last() else { return 0 };
        let end = self.bits.len() as u64 * 64 - u64::from(last.leading_zeros());
        end - self.unique
    }
}

/// All lanes of a stream.
#[derive(Clone, Debug, Default)]
pub struct Recount {
    /// What was seen, per lane.
    pub lanes: BTreeMap<LaneKey, Seen>,
    /// Lines that are no tagged record.
    pub malformed: u64,
}

impl Recount {
    /// Reads all files below `folder`; a folder that does not exist yet holds nothing. The text of
    /// each record is given to `value` (still escaped).
    pub fn read(
        folder: &Path,
        mut value: impl FnMut(&LaneKey, u64, &[u8]),
    ) -> Result<Self, CliError> {
        let mut recount = Self::default();
        for path in files_below(folder)? {
            recount.add_file(&path, &mut value)?;
        }
        Ok(recount)
    }

    /// Takes one more file, as [`Self::read`] takes each.
    pub fn add_file(
        &mut self,
        path: &Path,
        mut value: impl FnMut(&LaneKey, u64, &[u8]),
    ) -> Result<(), CliError> {
        let cannot = |error| CliError::io(format!("cannot read {}", path.display()))(error);
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(cannot)?);
        let (mut line, mut current) = (Vec::new(), None);
        while reader.read_until(b'\n', &mut line).map_err(cannot)? > 0 {
            // Space that was reserved beyond the end of the records is zeros.
            if line.iter().all(|byte| *byte == 0) {
                line.clear();
                continue;
            }
            match parse(&line) {
                Some((agent, data_id, epoch, sequence, text)) => {
                    let key = key_of(&mut current, agent, data_id, epoch);
                    value(key, sequence, text);
                    match self.lanes.get_mut(key) {
                        Some(seen) => seen.add(sequence),
                        None => self.lanes.entry(key.clone()).or_default().add(sequence),
                    }
                }
                None => self.malformed += 1,
            }
            line.clear();
        }
        Ok(())
    }

    /// Counts without looking at the values.
    pub fn of(folder: &Path) -> Result<Self, CliError> {
        Self::read(folder, |_, _, _| {})
    }

    /// Different records over all lanes.
    pub fn unique(&self) -> u64 {
        self.lanes.values().map(Seen::unique).sum()
    }

    /// Repeats over all lanes.
    pub fn duplicates(&self) -> u64 {
        self.lanes.values().map(Seen::duplicates).sum()
    }

    /// Gaps over all lanes.
    pub fn missing(&self) -> u64 {
        self.lanes.values().map(Seen::missing).sum()
    }
}

/// Records of one lane follow each other, so the key is rarely made anew.
fn key_of<'a>(
    current: &'a mut Option<LaneKey>,
    agent: &str,
    data_id: u32,
    epoch: u64,
) -> &'a LaneKey {
    let same = current
        .as_ref()
        .is_some_and(|key| key.agent == agent && key.data_id == data_id && key.epoch == epoch);
    if !same {
        *current = None;
    }
    current.get_or_insert_with(|| LaneKey { agent: agent.to_owned(), data_id, epoch })
}

/// Agent, data id, epoch, sequence and value of a line of a `tagged` stream.
fn parse(line: &[u8]) -> Option<(&str, u32, u64, u64, &[u8])> {
    let line = line.strip_suffix(b"\n")?;
    let mut fields = line.splitn(6, |byte| *byte == b'\t');
    let agent = std::str::from_utf8(fields.next()?).ok().filter(|agent| !agent.is_empty())?;
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse::<u64>().ok();
    let data_id = u32::try_from(number()?).ok()?;
    let (epoch, sequence, _timestamp) = (number()?, number()?, number()?);
    // A sequence past this would be a bitmap past any memory: it is damage.
    (sequence < 1 << 32).then_some(())?;
    Some((agent, data_id, epoch, sequence, fields.next()?))
}

/// Regular files below a folder, in order of path.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry.map_err(CliError::io(format!("cannot list {}", folder.display())))?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
        if files.len() > FILES_MAX {
            return Err(CliError::Local(format!("{} holds too many files", folder.display())));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_gaps_and_damage_are_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("1001")).unwrap();
        let text = "a\t1\t5\t0\t9\tx\na\t1\t5\t1\t9\ty\\ty\na\t1\t5\t1\t9\ty\na\t1\t5\t70\t9\tz\n\
                    b\t1\t5\t0\t9\tx\nnot tagged\n\0\0\0\0";
        std::fs::write(folder.path().join("1001/one.log"), text).unwrap();
        std::fs::write(folder.path().join("two.log"), "a\t1\t6\t0\t9\t\n").unwrap();
        let mut values = Vec::new();
        let recount = Recount::read(folder.path(), |key, sequence, value| {
            values.push((key.agent.clone(), sequence, String::from_utf8_lossy(value).into_owned()));
        })
        .unwrap();
        assert_eq!((recount.unique(), recount.duplicates(), recount.malformed), (5, 1, 1));
        assert_eq!(recount.missing(), 68);
        assert_eq!(recount.lanes.len(), 3);
        assert!(values.contains(&("a".into(), 1, "y\\ty".into())));
        assert_eq!(Recount::of(Path::new("/nonexistent")).unwrap().unique(), 0);
    }
}
