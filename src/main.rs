//! Arguments to entry point, and nothing else.

use std::{path::Path, process::ExitCode};

use action_executor::{
    cli::{Cli, Command, OnceArgs},
    config::Settings,
    entry::{
        Answer, http,
        once::{self, Source},
    },
    error::Code,
    logging, schema,
};
use clap::{CommandFactory, Parser};
use tracing::Level;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return say(&error),
    };
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => {
            let exit = error.code.exit_status();
            println!("{}", String::from_utf8_lossy(&Answer::from(error).body));
            return ExitCode::from(exit);
        }
    };
    logging::start(settings.log_level.unwrap_or(Level::INFO));
    ExitCode::from(match cli.command {
        None if once::nothing_to_do(std::env::vars_os()) => {
            eprintln!("{}", Cli::command().render_help());
            Code::Usage.exit_status()
        }
        None => single(&Source::Found, cli.once, &settings),
        Some(Command::Run(run)) => match run.file.as_deref() {
            None => single(&Source::Found, run.once, &settings),
            Some(file) if file == Path::new("-") => single(&Source::Stdin, run.once, &settings),
            Some(file) => single(&Source::File(file.to_owned()), run.once, &settings),
        },
        Some(Command::Serve(serve)) => http::run(serve, &settings),
        Some(Command::Schema { of }) => {
            println!("{}", schema::document(of));
            0
        }
    })
}

fn single(source: &Source, args: OnceArgs, settings: &Settings) -> u8 {
    once::run(source, &args, settings)
}

/// Help and version are answers; anything else is wrong usage.
fn say(error: &clap::Error) -> ExitCode {
    // There is nobody left to tell if this cannot be printed.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Code::Usage.exit_status() } else { 0 })
}
