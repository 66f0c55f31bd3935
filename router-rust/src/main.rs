//! The command line: arguments -> configuration, logging, serve, exit code.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use infini_router::app::App;
use infini_router::config::RouterConfig;
use infini_router::config_load::{Command, ConfigError, load_config};
use infini_router::flags::help;
use infini_router::utils::logging;

const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    match read_command() {
        Ok(Command::Help) => show(&help()),
        Ok(Command::Check(config)) => show(&format!("{}\n", config.to_json())),
        Ok(Command::Serve(config)) => serve(*config),
        Err(error) => {
            // Without standard error there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::from(EX_USAGE)
        }
    }
}

fn read_command() -> Result<Command, ConfigError> {
    let words = std::env::args_os().skip(1);
    let argv: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    load_config(&argv, &|name| std::env::var(name).ok())
}

fn show(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(config: RouterConfig) -> ExitCode {
    let log_level = logging::init(config.log_level);
    let reload = || match read_command()? {
        Command::Serve(config) | Command::Check(config) => Ok(*config),
        Command::Help => Ok(RouterConfig::default()),
    };
    App::new(config, log_level, Box::new(reload)).run()
}
