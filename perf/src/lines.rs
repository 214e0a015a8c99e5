//! Where lines come from: the generator, or real samples with a number before each line so that no
//! batch repeats.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use skein_observe::loggen::LogGen;

/// An endless source of lines without line ends.
pub enum Lines {
    /// Generated from a seed.
    Generated(LogGen),
    /// Real ones in turn, numbered.
    Sample {
        /// All samples.
        text: Arc<Vec<u8>>,
        /// Where the next line begins.
        at: usize,
        /// Of the next line.
        number: u64,
    },
}

impl Lines {
    /// Generated, or from samples when there are any; another seed gives other lines.
    pub fn new(seed: u64, samples: Option<Arc<Vec<u8>>>) -> Self {
        match samples {
            None => Self::Generated(LogGen::new(seed)),
            Some(text) => {
                // Feeds begin at different places.
                let at = (seed as usize).wrapping_mul(0x9e37_79b9) % text.len();
                let at = at + text[at..].iter().position(|byte| *byte == b'\n').unwrap_or(0) + 1;
                Self::Sample { text, at, number: seed << 32 }
            }
        }
    }

    /// Appends the next line to `out`.
    pub fn next(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Generated(generator) => generator.line(out),
            Self::Sample { text, at, number } => {
                if *at >= text.len() {
                    *at = 0;
                }
                let rest = &text[*at..];
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                out.extend_from_slice(number.to_string().as_bytes());
                out.push(b' ');
                out.extend_from_slice(rest[..end].trim_ascii_end());
                *at += end + 1;
                *number += 1;
            }
        }
    }
}

/// A file of samples, or all `.log` files of a folder one after the other.
pub fn read_samples(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut files = if path.is_dir() {
        let entries = std::fs::read_dir(path)?.flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_some_and(|ext| ext == "log")).collect()
    } else {
        vec![path.to_owned()]
    };
    files.sort();
    let mut text = Vec::new();
    for file in files {
        text.extend(std::fs::read(&file).with_context(|| file.display().to_string())?);
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
    }
    ensure!(!text.is_empty(), "{} holds no lines", path.display());
    Ok(text)
}
