package cli

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"syscall"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sluicemq/sluice/internal/bench"
)

// explain adds to a client-side error what a person can do about it, where that
// is known. The URL is shown without its password.
func explain(err error, brokerURL string) error {
	if err == nil {
		return nil
	}
	shown := redact(brokerURL)
	var dns *net.DNSError
	code := 0
	var ae *amqp.Error
	var be *bench.BrokerError
	switch {
	case errors.As(err, &ae):
		code = ae.Code
	case errors.As(err, &be):
		code = int(be.Code)
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no broker answers at %s: is it running there? (start one with: sluice serve): %w", shown, err)
	case errors.As(err, &dns):
		return fmt.Errorf("the host in %s is unknown: %w", shown, err)
	case errors.Is(err, amqp.ErrCredentials) || errors.Is(err, amqp.ErrSASL):
		return fmt.Errorf("the broker at %s refused the login: check user and password in --url (guest may log in from loopback only): %w", shown, err)
	case errors.Is(err, amqp.ErrVhost) || code == amqp.NotAllowed:
		return fmt.Errorf("the broker at %s refused the virtual host in --url: %w", shown, err)
	case code == amqp.NotFound:
		return fmt.Errorf("%w (--declare creates the queue)", err)
	case code == amqp.PreconditionFailed:
		return fmt.Errorf("%w (it exists with other settings, or a setting is invalid)", err)
	case code == amqp.ResourceLocked:
		return fmt.Errorf("%w (another connection has it for itself)", err)
	case errors.Is(err, amqp.ErrClosed) || errors.Is(err, io.EOF):
		return fmt.Errorf("the broker at %s closed the connection: %w", shown, err)
	}
	return err
}

// redact returns a broker URL without its password.
func redact(brokerURL string) string {
	u, err := url.Parse(brokerURL)
	if err != nil {
		return "the given --url" // not even a URL: don't risk printing a password
	}
	return u.Redacted()
}
