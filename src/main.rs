//! Arguments and settings to a command; nothing else.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use action_executor::{
    cli,
    cli::{Cli, Command, OnceArgs, PolicyCommand},
    commands::{
        healthcheck, history, job, mcp, policy, reference, run, run::RequestSource, schema, serve,
    },
    config::Settings,
    contract::error::{ActionError, Code},
    executor::reply::Reply,
    telemetry::{logging, traces::Exporter},
};
use clap::{CommandFactory, Parser};
use tracing::Level;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return print_usage(&error),
    };
    let report = |error| match &cli.command {
        // Its standard output carries messages only.
        Some(Command::Mcp(_)) => mcp::report(&error),
        _ => print(Err(error)),
    };
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => return ExitCode::from(report(error)),
    };
    let (_traces, layer) = match Exporter::from_env() {
        Ok(traces) => traces,
        Err(error) => return ExitCode::from(report(error)),
    };
    logging::start(settings.log_level.unwrap_or(Level::INFO), layer);
    ExitCode::from(match cli.command {
        None if run::is_idle_terminal(std::env::vars_os()) => {
            eprintln!("{}", Cli::command().render_help());
            Code::Usage.exit_status()
        }
        None => single(&RequestSource::Auto, cli.once, &settings),
        Some(Command::Run(run)) => match run.file.as_deref() {
            None => single(&RequestSource::Auto, run.once, &settings),
            Some(file) if file == Path::new("-") => {
                single(&RequestSource::Stdin, run.once, &settings)
            }
            Some(file) => single(&RequestSource::File(file.to_owned()), run.once, &settings),
        },
        Some(Command::Serve(serve)) => serve::run(serve, &settings),
        Some(Command::Mcp(args)) => mcp::run(&args, &settings),
        Some(Command::Job(args)) => print(job::run(&args)),
        Some(Command::Policy(PolicyCommand::Check(args))) => print(policy::check(&args)),
        Some(Command::Policy(PolicyCommand::Admission(args))) => {
            print(policy::admission(&args).map(|text| (text, 0)))
        }
        Some(Command::Rbac(args)) => print(policy::rbac(&args).map(|text| (text, 0))),
        Some(Command::History(args)) => print(history::list(&args).map(|text| (text, 0))),
        Some(Command::Healthcheck(args)) => {
            print(healthcheck::check(&args, &settings).map(|text| (text, 0)))
        }
        Some(Command::Completions { shell }) => print(Ok((cli::completions(shell), 0))),
        Some(Command::Man) => print(cli::manual().map(|text| (text, 0))),
        Some(Command::Schema { of }) => print(Ok((schema::document(of), 0))),
        Some(Command::Reference { of }) => print(Ok((reference::table(of), 0))),
    })
}

fn single(source: &RequestSource, args: OnceArgs, settings: &Settings) -> u8 {
    run::run(source, &args, settings)
}

/// Prints the output or the problem; returns the exit status.
fn print(result: Result<(String, u8), ActionError>) -> u8 {
    let (text, status) = result.unwrap_or_else(|error| {
        let reply = Reply::from(error);
        (String::from_utf8_lossy(&reply.to_json()).into_owned(), reply.exit_status())
    });
    // A closed pipe is not an error.
    let _ = writeln!(io::stdout(), "{}", text.trim_end());
    status
}

/// Help and version are output; anything else is wrong usage.
fn print_usage(error: &clap::Error) -> ExitCode {
    // An error to print an error cannot be reported.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Code::Usage.exit_status() } else { 0 })
}
