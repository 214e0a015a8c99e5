//! The account of a `tagged` stream over a long run: every record by (agent, data id, epoch,
//! sequence). Closed files are counted once and deleted, so that a run is not bound by the disk;
//! what they held stays in the account.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use skein_cli::recount::{LaneKey, Recount, Seen, files_below};

/// Newest files of each writer that are never taken for closed. A writer has at most 64 MiB of
/// blocks that are not in a checkpoint: the ends of eight files of 8 MiB, the size at which `kills`
/// rotates, and of one at either end.
const OPEN_FILES: usize = 10;

/// The account.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    records: Recount,
    /// Numbers at the beginning of the lines, by agent, when lines are numbered.
    numbers: BTreeMap<String, Seen>,
    numbered: bool,
    /// Files that were counted and deleted.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What an account says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records that the senders know to have been handed over.
    pub expected: u64,
    /// Different records found.
    pub stored: u64,
    /// Records not found: by sequence, or by number when lines are numbered.
    pub lost: u64,
    /// Lines beyond the first of a record.
    pub duplicates: u64,
    /// Lines that are no record.
    pub malformed: u64,
}

impl Ledger {
    /// An empty account; `numbered` when each line begins with its number, from 0 for each agent.
    pub fn new(numbered: bool) -> Self {
        Self { numbered, ..Self::default() }
    }

    /// Counts and deletes the closed files below a stream's folder; how many records are known.
    pub fn sweep(&mut self, folder: &Path) -> anyhow::Result<u64> {
        for file in closed_files(files_below(folder)?) {
            self.add(&file)?;
            self.files += 1;
            self.bytes += std::fs::metadata(&file)?.len();
            std::fs::remove_file(&file)?;
        }
        Ok(self.records.unique())
    }

    /// The account with everything that is in the folder now; nothing is deleted.
    pub fn with_rest(&self, folder: &Path) -> anyhow::Result<Self> {
        let mut all = self.clone();
        for file in files_below(folder)? {
            all.add(&file)?;
        }
        Ok(all)
    }

    /// Different records.
    pub fn unique(&self) -> u64 {
        self.records.unique()
    }

    /// Compares with what each agent has handed over.
    pub fn verdict(&self, expected: &[(String, u64)]) -> Verdict {
        let of_agent = |agent: &str| {
            let lanes = self.records.lanes.iter().filter(|(key, _)| key.agent == agent);
            lanes.map(|(_, seen)| seen.unique()).sum::<u64>()
        };
        let mut lost = self.records.missing();
        let mut duplicates = self.records.duplicates();
        for (agent, records) in expected {
            lost = lost.max(records.saturating_sub(of_agent(agent)));
            if self.numbered {
                let numbers = self.numbers.get(agent).cloned().unwrap_or_default();
                // A gap counts in both unless a number is there that nobody sent.
                lost = lost.max(records.saturating_sub(numbers.unique())).max(numbers.missing());
                duplicates = duplicates.max(numbers.duplicates());
            }
        }
        Verdict {
            expected: expected.iter().map(|(_, records)| records).sum(),
            stored: self.records.unique(),
            lost,
            duplicates,
            malformed: self.records.malformed,
        }
    }

    fn add(&mut self, file: &Path) -> anyhow::Result<()> {
        let (numbers, numbered) = (&mut self.numbers, self.numbered);
        self.records.add_file(file, |key: &LaneKey, _, text: &[u8]| {
            if !numbered {
                return;
            }
            let digits = text.split(|byte| *byte == b' ').next().unwrap_or_default();
            let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
            // A number past this would be a bitmap past any memory: it is damage, and the gap or
            // the count will show it.
            let Some(number) = number.filter(|number| *number < 1 << 32) else { return };
            match numbers.get_mut(&key.agent) {
                Some(seen) => seen.add(number),
                None => numbers.entry(key.agent.clone()).or_default().add(number),
            }
        })?;
        Ok(())
    }
}

impl Verdict {
    /// Whether every record is there, once, and nothing else.
    pub fn is_clean(&self) -> bool {
        self.stored == self.expected && (self.lost, self.duplicates, self.malformed) == (0, 0, 0)
    }
}

/// All but the newest files of each writer. Rotated files are named `WRITER.log`, `WRITER.1.log`,
/// `WRITER.2.log` and so on.
fn closed_files(files: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut writers = BTreeMap::<PathBuf, Vec<(u64, PathBuf)>>::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut parts = name.split('.');
        let writer = file.with_file_name(parts.next().unwrap_or_default());
        let number = parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        writers.entry(writer).or_default().push((number, file));
    }
    let mut closed = Vec::new();
    for mut files in writers.into_values() {
        files.sort();
        files.truncate(files.len().saturating_sub(OPEN_FILES));
        closed.extend(files.into_iter().map(|(_, file)| file));
    }
    closed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(records: u64) -> Vec<(String, u64)> {
        vec![("a".to_owned(), records)]
    }

    #[test]
    fn the_newest_files_of_each_writer_stay() {
        let mut files = vec!["1/0.log".to_owned(), "1/1.log".to_owned(), "1/1.1.log".to_owned()];
        files.extend((1..12).map(|number| format!("1/0.{number}.log")));
        let closed = closed_files(files.into_iter().map(PathBuf::from).collect());
        assert_eq!(closed, ["1/0.log", "1/0.1.log"].map(PathBuf::from));
    }

    #[test]
    fn swept_records_stay_in_the_account() {
        let folder = tempfile::tempdir().unwrap();
        let line = |number: u64| format!("a\t1\t5\t{number}\t9\t{number} text\n");
        std::fs::write(folder.path().join("0.log"), line(0)).unwrap();
        for number in 1..12 {
            std::fs::write(folder.path().join(format!("0.{number}.log")), line(number)).unwrap();
        }
        let mut ledger = Ledger::new(true);
        assert_eq!(ledger.sweep(folder.path()).unwrap(), 2);
        assert_eq!(files_below(folder.path()).unwrap().len(), OPEN_FILES);
        let all = ledger.with_rest(folder.path()).unwrap();
        assert!(all.verdict(&expected(12)).is_clean());
        assert_eq!(all.verdict(&expected(13)).lost, 1);
        std::fs::write(folder.path().join("0.12.log"), line(1)).unwrap();
        let repeated = ledger.with_rest(folder.path()).unwrap().verdict(&expected(12));
        assert_eq!((repeated.duplicates, repeated.is_clean()), (1, false));
        std::fs::remove_file(folder.path().join("0.2.log")).unwrap();
        assert_eq!(ledger.with_rest(folder.path()).unwrap().verdict(&expected(12)).lost, 1);
    }
}
