//! The command line. Each command's own flags are declared beside its code.

use clap::builder::styling::Styles;
use clap::{Parser, Subcommand};

use crate::commands;
use crate::connection::ConnectionArgs;
use crate::demo::DemoArgs;
use crate::error::EXIT_CODES_HELP;
use crate::server::{ProcessArgs, ServerArgs};

const ABOUT: &str = "\
Skein runs scripts, moves files and carries telemetry between one server and a fleet of hosts.

A first look:
  skein server --data-dir ./skein          start a server here
  skein hosts                              who has joined
  skein run --on all -- uptime             run a command everywhere
  skein push app.tar --to region=eu:/opt   send a file
  skein tap 1001                           watch records of a data id pass";

/// How hosts are named, shown by every command that takes a selector.
pub const SELECTOR_HELP: &str = "\
Selectors: all, an agent id, a host name, an address, region=eu, zone=eu-1, cloud=3, state=lost,
label.role=web or just role=web, key!=value, re:web-[0-9]+ (over host names); `*` in a value stands
for anything; `a,b` means both hold, `a|b` either. Quote what the shell would eat.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "skein",
    version,
    about = "The server and the operator's tool of a Skein fleet",
    long_about = ABOUT,
    after_help = EXIT_CODES_HELP,
    styles = Styles::plain(),
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Where the server is and how to print.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a server in this folder until stopped
    Server(ServerArgs),
    /// The control process (started by `server`)
    #[command(hide = true)]
    Control(ProcessArgs),
    /// The data process (started by `server`)
    #[command(hide = true)]
    Data(ProcessArgs),
    /// Start a server and six agents here, and show what they do
    Demo(DemoArgs),
    /// Show how the server does
    Status(commands::status::StatusArgs),
    /// List hosts
    #[command(visible_alias = "ls", after_help = SELECTOR_HELP)]
    Hosts(commands::hosts::HostsArgs),
    /// Send files and directories to hosts
    #[command(after_help = commands::push::help())]
    Push(commands::push::PushArgs),
    /// Run a command or script on hosts
    #[command(after_help = SELECTOR_HELP)]
    Run(commands::run::RunArgs),
    /// Watch records pass
    Tap(commands::tap::TapArgs),
    /// Where records are written
    Stream(commands::stream::StreamArgs),
    /// Which records go to which stream
    Route(commands::route::RouteArgs),
    /// Lanes of records: what is stored, waiting, held, dropped
    #[command(after_help = SELECTOR_HELP)]
    Lanes(commands::lanes::LanesArgs),
    /// Tokens that let agents join and operators in
    Token(commands::token::TokenArgs),
    /// Label, ping, revoke or forget agents
    Agent(commands::agent::AgentArgs),
    /// Pushes that run or ran
    Transfer(commands::transfer::TransferArgs),
    /// Scripts that run or ran
    Task(commands::task::TaskArgs),
    /// Hash and check files, and make torrents of them, without a server
    File(commands::file::FileArgs),
    /// Print completions for a shell
    Completions(commands::completions::CompletionsArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_explains_itself() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no description");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
            }
            command.get_subcommands().for_each(|sub| check(sub, &path));
        }
        check(&Cli::command(), "");
    }
}
