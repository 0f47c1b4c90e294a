package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sluicemq/sluice/internal/config"
	"github.com/sluicemq/sluice/internal/server"
)

func newServeCmd() *cobra.Command {
	var file string
	var flags config.Config
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the broker",
		Long: `Run the broker. It needs no configuration: data goes to ./sluice-data, AMQP is
served on 127.0.0.1:5672 for the user guest with password guest.

Settings come from a YAML file, then from the environment (SLUICE_DATA,
SLUICE_LOG_LEVEL, SLUICE_AMQP_LISTEN, SLUICE_SHARDS), then from flags.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := serveConfig(file, flags)
			if err != nil {
				return err
			}
			return serve(cmd, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "YAML file with settings")
	f.StringVar(&flags.Data, "data", "", "data directory (default ./sluice-data)")
	f.StringVar(&flags.AMQP.Listen, "amqp-listen", "", "address for AMQP (default 127.0.0.1:5672)")
	f.StringVar(&flags.LogLevel, "log-level", "", "debug, info, warn or error (default info)")
	f.BoolVar(&flags.Storage.Strict, "strict", false, "do not start where anything on disk is damaged")
	f.IntVar(&flags.Storage.Shards, "shards", 0, "durable shards, fixed at first start (default one per core, 2 to 8)")
	return cmd
}

// serveConfig joins file, environment and flags.
func serveConfig(file string, flags config.Config) (cfg config.Config, err error) {
	if file != "" {
		if cfg, err = config.Read(file); err != nil {
			return cfg, err
		}
	}
	if err := cfg.FromEnv(os.Getenv); err != nil {
		return cfg, usageError{err}
	}
	over := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	over(&cfg.Data, flags.Data)
	over(&cfg.AMQP.Listen, flags.AMQP.Listen)
	over(&cfg.LogLevel, flags.LogLevel)
	cfg.Storage.Strict = cfg.Storage.Strict || flags.Storage.Strict
	if flags.Storage.Shards != 0 {
		cfg.Storage.Shards = flags.Storage.Shards
	}
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return cfg, usageError{err}
	}
	return cfg, nil
}

func serve(cmd *cobra.Command, cfg config.Config) error {
	level, err := cfg.Level()
	if err != nil {
		return usageError{err}
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
	slog.SetDefault(log)
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(stop)
	s, err := server.Start(cfg, log)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "sluice %s, data in %s\n", version(), cfg.Data)
	fmt.Fprintf(out, "listening for AMQP 0-9-1 on %s\n", s.AMQPAddr())
	if addr := s.TLSAddr(); addr != nil {
		fmt.Fprintf(out, "listening for AMQP 0-9-1 with TLS on %s\n", addr)
	}
	var failed error
	select {
	case sig := <-stop:
		log.Info("draining", "signal", sig.String())
	case failed = <-s.Failed():
		log.Error("stopping", "err", failed)
	}
	err = errors.Join(failed, s.Stop())
	log.Info("stopped")
	return err
}
