//! `skein completions bash > /etc/bash_completion.d/skein`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Outcome;
use crate::args::Cli;
use crate::error::EXIT_OK;
use crate::show;

const WHERE: &str = "\
Where they belong:
  bash  skein completions bash > /etc/bash_completion.d/skein
  zsh   skein completions zsh > \"${fpath[1]}/_skein\"
  fish  skein completions fish > ~/.config/fish/completions/skein.fish";

/// Flags of `completions`.
#[derive(Args, Debug)]
#[command(after_help = WHERE)]
pub struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "skein", &mut script);
    show::raw(&script)?;
    Ok(EXIT_OK)
}
