//! Progress that a person can follow: a bar on a terminal, plain lines elsewhere (a log, CI), all
//! on standard error so that standard output stays what was asked for.

use std::io::{IsTerminal, Read};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::quantity;

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// One piece of work with a known or growing size in bytes or things.
pub struct Progress {
    bar: Option<ProgressBar>,
    title: String,
    total: u64,
    in_bytes: bool,
    quiet: bool,
    /// Where the work began that is measured.
    from: u64,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// Begins; `quiet` shows nothing at all (JSON output).
    pub fn new(title: &str, total: u64, in_bytes: bool, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| bar(title, total, in_bytes));
        if bar.is_none() && !quiet {
            eprintln!("{title} ...");
        }
        let started = Instant::now();
        let title = title.to_owned();
        Self { bar, title, total, in_bytes, quiet, from: 0, started, last_line: started }
    }

    /// Says how far it is, with a note ("4 of 6 hosts").
    pub fn set(&mut self, position: u64, total: u64, note: &str) {
        self.total = total;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(position);
            bar.set_message(note.to_owned());
        } else if !self.quiet && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let percent = (position * 100).checked_div(total).unwrap_or(0);
            eprintln!("{} {percent} % {note}", self.title);
        }
    }

    /// Ends with a sentence.
    pub fn finish(self, outcome: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if !self.quiet {
            eprintln!("{}: {outcome}", self.title);
        }
    }

    /// Ends without a word, because something else will be said.
    pub fn clear(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Time since it began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Goes on where an earlier run ended, so that the rate is of this run.
    pub fn begin_at(&mut self, position: u64) {
        self.from = position;
    }

    /// Says how far it is, with the rate so far.
    pub fn advance_to(&mut self, position: u64, total: u64) {
        let seconds = self.elapsed().as_secs_f64().max(0.001);
        let rate = if self.in_bytes {
            let done = position.saturating_sub(self.from);
            format!("{}/s", quantity::bytes((done as f64 / seconds) as u64))
        } else {
            String::new()
        };
        self.set(position, total, &rate);
    }
}

fn bar(title: &str, total: u64, in_bytes: bool) -> ProgressBar {
    let amounts = if in_bytes { "{decimal_bytes}/{decimal_total_bytes}" } else { "{pos}/{len}" };
    // The note is cut at the edge of the terminal: a line that wraps cannot be drawn over.
    let template = format!("{{prefix}} [{{bar:24}}] {{percent:>3}} % {amounts} {{wide_msg}}");
    let style = ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    let bar = ProgressBar::new(total).with_style(style).with_prefix(title.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A reader that moves a progress as it is read.
pub struct Reading<'a, R> {
    inner: R,
    position: u64,
    progress: &'a mut Progress,
}

impl<'a, R> Reading<'a, R> {
    /// Wraps `inner`.
    pub fn new(inner: R, progress: &'a mut Progress) -> Self {
        Self { inner, position: 0, progress }
    }
}

impl<R: Read> Read for Reading<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.position += count as u64;
        self.progress.advance_to(self.position, self.progress.total);
        Ok(count)
    }
}
