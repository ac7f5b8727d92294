"""Restaurant data that ships with Foreword; see LICENSE.md."""
