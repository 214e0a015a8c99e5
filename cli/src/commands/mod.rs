//! One module per command: its flags, and what it does with the API's answers.

pub mod agent;
pub mod completions;
pub mod file;
pub mod hosts;
pub mod lanes;
pub mod push;
pub mod route;
pub mod run;
pub mod status;
pub mod stream;
pub mod tap;
pub mod task;
pub mod token;
pub mod transfer;

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::error::CliError;
use crate::{demo, server};

/// What a command ends with: the exit code.
pub type Outcome = Result<u8, CliError>;

/// What every command that talks to the API has.
pub struct Context {
    /// The API.
    pub client: Client,
    /// Print JSON.
    pub json: bool,
}

/// Runs the command.
pub fn dispatch(cli: Cli) -> Outcome {
    match cli.command {
        Command::Server(args) => return server::run_server(&args, &cli.connection),
        Command::Control(args) => return server::run_control(&args, &cli.connection),
        Command::Data(args) => return server::run_data(&args, &cli.connection),
        Command::Demo(args) => return demo::run(&args),
        Command::Completions(args) => return completions::run(&args),
        Command::File(args) => return file::run(&args, cli.connection.json),
        _ => {}
    }
    let json = cli.connection.json;
    let context = Context { client: Client::new(cli.connection.resolve()?)?, json };
    match cli.command {
        Command::Status(args) => status::run(&args, &context),
        Command::Hosts(args) => hosts::run(&args, &context),
        Command::Push(args) => push::run(&args, &context),
        Command::Run(args) => run::run(&args, &context),
        Command::Tap(args) => tap::run(&args, &context),
        Command::Stream(args) => stream::run(&args, &context),
        Command::Route(args) => route::run(&args, &context),
        Command::Lanes(args) => lanes::run(&args, &context),
        Command::Token(args) => token::run(&args, &context),
        Command::Agent(args) => agent::run(&args, &context),
        Command::Transfer(args) => transfer::run(&args, &context),
        Command::Task(args) => task::run(&args, &context),
        Command::Server(_)
        | Command::Control(_)
        | Command::Data(_)
        | Command::Demo(_)
        | Command::File(_)
        | Command::Completions(_) => unreachable!("handled above, without a connection"),
    }
}

/// An empty selector is what a variable of the shell leaves that was not set; it never means all.
pub fn selector(text: &str) -> Result<&str, CliError> {
    match text.trim() {
        "" => Err(CliError::Usage("the selector is empty; write `all` for all hosts".into())),
        text => Ok(text),
    }
}

/// Ids, names and selectors that become part of a path must not change its shape.
pub fn segment(text: &str) -> Result<&str, CliError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    if text.is_empty() || text == "." || text == ".." || !text.bytes().all(plain) {
        return Err(CliError::Usage(format!(
            "\"{text}\" is no id or name: only letters, digits and . _ : - occur in them"
        )));
    }
    Ok(text)
}
