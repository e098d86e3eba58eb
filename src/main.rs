//! Arguments and settings to a command; nothing else.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use action_executor::{
    cli,
    cli::{Cli, Command, Invocation, OnceArgs, OutputFormat, PolicyCommand},
    commands::{
        action, complete, diagnose, doctor, explain, healthcheck, history, job, mcp, policy,
        reference, run, run::RequestSource, schema, serve, verify_receipt,
    },
    config::Settings,
    contract::error::{ActionError, Code},
    telemetry::{logging, traces::Exporter},
};
use tracing::Level;

fn main() -> ExitCode {
    complete::complete_if_asked();
    let invocation = match cli::parse() {
        Ok(invocation) => invocation,
        Err(error) => return print_usage(&error),
    };
    let report = |error| match &invocation {
        // Its standard output carries messages only.
        Invocation::Program(Cli { command: Some(Command::Mcp(_)), .. }) => mcp::report(&error),
        Invocation::Program(Cli { command: None, once }) => run::report(error, once.output),
        Invocation::Program(Cli { command: Some(Command::Run(args)), .. }) => {
            run::report(error, args.once.output)
        }
        Invocation::Action(args) => run::report(error, args.common.output),
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
    logging::start(settings.log_level.unwrap_or(default_log_level(&invocation)), layer);
    let cli = match invocation {
        Invocation::Action(args) => return ExitCode::from(action::run(args, &settings)),
        Invocation::Program(cli) => cli,
    };
    ExitCode::from(match cli.command {
        None if run::is_idle_terminal(std::env::vars_os()) => {
            eprintln!("{}", cli::command().render_help());
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
        Some(Command::Job(args)) => print(job::run(&args, &settings)),
        Some(Command::Policy(PolicyCommand::Check(args))) => print(policy::check(&args)),
        Some(Command::Policy(PolicyCommand::Admission(args))) => {
            print(policy::admission(&args).map(|text| (text, 0)))
        }
        Some(Command::Rbac(args)) => print(policy::rbac(&args).map(|text| (text, 0))),
        Some(Command::History(args)) => {
            print(history::list(&args, &settings).map(|text| (text, 0)))
        }
        Some(Command::Diagnose(args)) => {
            print(diagnose::diagnose(&args, &settings).map(|text| (text, 0)))
        }
        Some(Command::Healthcheck(args)) => {
            print(healthcheck::check(&args, &settings).map(|text| (text, 0)))
        }
        Some(Command::Doctor(args)) => print(doctor::examine(&args, &settings)),
        Some(Command::VerifyReceipt(args)) => print(verify_receipt::verify(&args)),
        Some(Command::Explain { what }) => print(explain::explain(&what).map(|text| (text, 0))),
        Some(Command::Completions { shell }) => {
            print(complete::script(shell).map(|text| (text, 0)))
        }
        Some(Command::Man) => print(cli::manual().map(|text| (text, 0))),
        Some(Command::Schema { of }) => print(Ok((schema::document(of), 0))),
        Some(Command::Reference { of }) => print(Ok((reference::table(of), 0))),
    })
}

/// A person who types an action on a terminal reads the answer, which says the same.
fn default_log_level(invocation: &Invocation) -> Level {
    match invocation {
        Invocation::Action(_) if io::stderr().is_terminal() => Level::ERROR,
        _ => Level::INFO,
    }
}

fn single(source: &RequestSource, args: OnceArgs, settings: &Settings) -> u8 {
    run::run(source, &args, settings)
}

/// Prints the output or the problem; returns the exit status.
fn print(result: Result<(String, u8), ActionError>) -> u8 {
    let (text, status) = match result {
        Ok(output) => output,
        Err(error) => return run::report(error, OutputFormat::Json),
    };
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
